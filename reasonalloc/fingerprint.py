"""What tells models, and settings, from others: saved files name what they were made with, and are checked by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reasonalloc.protocols import Model

if TYPE_CHECKING:
    import torch

_KV_HEADS = "num_key_value_heads"
_KEYS_FOR_QUERIES = ("jetmoe",)  # whose caches hold keys for each query head, whatever the config says
_SAMPLE = 64  # numbers of each parameter that tell a model from others of its shape


def fingerprint(model: Model) -> dict[str, Any]:
    """What two models must share for a profile of one to be used for the other: the shape, not the weights."""
    return fingerprint_of(model.config)


def fingerprint_of(model_config: Any) -> dict[str, Any]:
    """The same from a model's config alone."""
    config = model_config.get_text_config(decoder=True)
    heads = _over_layers(config, "num_attention_heads")
    return {
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "query_heads": heads,
        "kv_heads": heads if config.model_type in _KEYS_FOR_QUERIES else _over_layers(config, _KV_HEADS) or heads,
        "head_dim": _over_layers(config, "head_dim")
        or config.hidden_size // (heads if isinstance(heads, int) else heads[0]),
        "hidden_size": config.hidden_size,
    }


def differences(saved: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """What a saved fingerprint says otherwise than one of here, for a message; empty if nothing."""
    return [f"{key} {saved.get(key)!r} (here {x!r})" for key, x in here.items() if saved.get(key) != x]


def dtype_name(dtype: torch.dtype) -> str:
    """What files call it, "bfloat16" say."""
    return str(dtype).removeprefix("torch.")


def weights_digest(model: Model, rounded: bool = False) -> str | None:
    """A digest of every parameter's name, shape and a sample of its numbers; None where weights are not in memory.

    rounded: of the numbers as bfloat16 has them, so that the same weights in float32 and bfloat16 have one digest.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:  # offloaded
            return None
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE]
        numbers = (sample.bfloat16() if rounded else sample).float().cpu().numpy()
        digest.update(f"{name} {list(parameter.shape)} ".encode() + numbers.tobytes())
    return digest.hexdigest()


def digest(value: object) -> str:
    """16 hexadecimal digits of what it says as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _over_layers(config: Any, name: str) -> Any:
    """A setting of a model's config; where layers differ in it, the list of theirs."""
    each = getattr(config, "per_layer_config", None)  # since transformers 5.24, where the plain attribute may raise
    if not each:
        return getattr(config, name, None)
    values = [getattr(layer, name, None) for layer in each]
    return values[0] if values.count(values[0]) == len(values) else values
