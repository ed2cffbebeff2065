"""Where transformers 5.2 and the newest differ, in one place."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer
from transformers.masking_utils import create_causal_mask

from reasonalloc.protocols import Model

T = TypeVar("T")

OLDEST, NEWEST_TESTED = "5.2.0", "5.24.0"

# What forward passes, generate and their outputs call the cache: `cache` since 5.24, which warns of the older name.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")


def transformers_supported() -> bool:
    return Version(transformers.__version__) >= Version(OLDEST)


def cache_argument(cache: Cache) -> dict[str, Cache]:
    """`model(..., **cache_argument(cache))`: the cache by the name that this transformers has for it."""
    return {CACHE_NAME: cache}


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of a forward pass or of generate, whatever it is called; None if none."""
    return next((arguments[name] for name in _CACHE_NAMES if arguments.get(name) is not None), None)


def without_cache(arguments: Mapping[str, T]) -> dict[str, T]:
    """The keyword arguments that are not the cache."""
    return {name: value for name, value in arguments.items() if name not in _CACHE_NAMES}


def cache_of(output: object) -> Any:
    """The cache in what a forward pass or generate returned; None if there is none."""
    return getattr(output, CACHE_NAME, None)


def generation_setting(model: Model, args: Sequence[object], kwargs: Mapping[str, Any], name: str) -> Any:
    """What a call `model.generate(*args, **kwargs)` uses of its generation configs; None: their default."""
    given = kwargs.get("generation_config", args[1] if len(args) > 1 else None)
    values = (kwargs.get(name), getattr(given, name, None), getattr(model.generation_config, name, None))
    chosen = next((value for value in values if value is not None), None)
    # the class of cache that older checkpoints name: transformers no longer follows it either
    return None if name == "cache_implementation" and chosen == "hybrid" else chosen


def generates_in_parts(model: Model) -> bool:
    """Whether its `generate` calls the common one for each part of its input, and again where that went wrong."""
    return hasattr(model, "generate_with_fallback")  # Whisper


def unwrapped(model: Model) -> Any:
    """The transformers model inside of torch.compile, a parallel wrapper or PEFT; the model itself otherwise.

    TypeError for what is no transformers model.
    """
    outermost = model
    while not isinstance(model, PreTrainedModel):
        if hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        else:
            modules = getattr(model, "_modules", {})
            inner = modules.get("_orig_mod", modules.get("module"))
        if inner is None:
            hint = ": load it first, by AutoModelForCausalLM.from_pretrained say" if isinstance(model, str) else ""
            got = repr(outermost) if isinstance(outermost, str) else f"a {type(outermost).__name__}"
            raise TypeError(f"the model must be one of transformers, got {got:.80}{hint}")
        model = inner
    return model


def check_not_prefix_tuned(model: object) -> None:
    """Raises ValueError for a model in PEFT's wrapper whose adapter is prefix tuning."""
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.peft_type == "PREFIX_TUNING":
        raise ValueError(
            "prefix tuning fills the cache with keys that no token has, which ReasonAllocCache does not take; prompt"
            " tuning, LoRA and other adapters are supported"
        )


def query_length(argument: int | torch.Tensor) -> int:
    """`get_mask_sizes` is given the number of queries since 5.4, the tensor of their positions before."""
    return argument if isinstance(argument, int) else int(argument.shape[0])


def stock_layers(model: Model) -> list[CacheLayerMixin]:
    """The cache layers that transformers itself would make for this model."""
    layers = DynamicCache(config=model.config).layers
    if not layers:
        raise ValueError(f"{type(model).__name__}: transformers makes no cache layers from its config")
    return list(layers)


def is_full_attention(layer: CacheLayerMixin) -> bool:
    """Whether a stock layer holds every token of plain attention: the ones whose budget can be managed."""
    return type(layer) is DynamicLayer


def kv_sources(model: Model) -> set[int]:
    """Layers whose keys and values other layers read too, as in Gemma 3n and 4."""
    config = model.config.get_text_config(decoder=True)
    modes = getattr(config, "kv_sharing_modes", None)  # since 5.24
    if modes is not None:
        # it calls the last layer of each kind "store" even where none is left to read it
        read = {config.layer_types[i] for i, mode in enumerate(modes) if mode not in (None, "store")}
        return {i for i, mode in enumerate(modes) if mode == "store" and config.layer_types[i] in read}
    shared = getattr(config, "num_kv_shared_layers", None) or 0
    unshared = config.layer_types[: config.num_hidden_layers - shared] if shared else []
    read = set(config.layer_types[len(unshared) :]) if shared else set()
    return {len(unshared) - 1 - unshared[::-1].index(kind) for kind in read}


def budgeted_layers(model: Model) -> list[int]:
    """Layers that can have a budget: with full attention, and keys that no other layer reads."""
    read_by_others = kv_sources(model)
    return [i for i, x in enumerate(stock_layers(model)) if is_full_attention(x) and i not in read_by_others]
