"""The reasoning wave: how much attention each layer spreads, measured offline and saved as a small JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from tqdm.auto import tqdm
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from reasonalloc.files import read_saved, replace_text
from reasonalloc.tokens import encode_prompt, ends, left_padded

SCHEMA = 1
MOST_PROMPTS = 8
PROBE_QUERIES = 64


def demand(queries: torch.Tensor, keys: torch.Tensor, rho: float = 0.93) -> float:
    """Number of tokens whose attention mass reaches rho: a layer's demand (ReasonAlloc, arXiv 2606.11164).

    queries: [Hq, w, d] of the newest w tokens; keys: [H, n, d]. The causal attention rows are averaged over queries and
    heads, sorted in descending order and summed up.
    """
    heads, n, d = keys.shape
    group, w = queries.shape[0] // heads, queries.shape[1]
    logits = torch.einsum("hgwd,hnd->hgwn", queries.float().view(heads, group, w, d), keys.float()) / d**0.5
    future = torch.arange(n, device=keys.device)[None, :] > torch.arange(n - w, n, device=keys.device)[:, None]
    row = logits.masked_fill(future, float("-inf")).softmax(-1).mean((0, 1, 2))
    mass = row.sort(descending=True).values.double().cumsum(0)
    return float((mass < rho).sum()) + 1


def fingerprint(model: Any) -> dict[str, Any]:
    """What two models must share for a profile of one to be used for the other: the shape, not the weights."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    return {
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "query_heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "hidden_size": config.hidden_size,
    }


def digest(value: Any) -> str:
    """16 hexadecimal digits of what it says as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class WaveProfile:
    """Demand of each layer that has a budget (sliding-window layers have none), with where it comes from."""

    demand: tuple[float, ...]
    layers: tuple[int, ...]
    model: dict[str, Any]
    rho: float = 0.93
    source: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if len(self.demand) != len(self.layers) or not self.demand:
            raise ValueError(f"a wave has one demand a layer, got {len(self.demand)} for {len(self.layers)} layers")
        if not all(isinstance(x, (int, float)) and 0 < x < float("inf") for x in self.demand):
            raise ValueError(f"demands must be positive numbers, got {self.demand}")

    def check(self, model: Any, layers: Sequence[int]) -> None:
        """Raises ValueError if this profile was made for a model of another shape."""
        own = fingerprint(model)
        wrong = [f"{key} {self.model.get(key)!r} (here {own[key]!r})" for key in own if self.model.get(key) != own[key]]
        if wrong:
            raise ValueError(f"the wave profile is of another model: {', '.join(wrong)}")
        if tuple(layers) != self.layers:
            raise ValueError(f"the wave profile is for layers {list(self.layers)}, the model's are {list(layers)}")

    def save(self, path: str | Path) -> None:
        """Writes the profile as JSON, whole or not at all."""
        replace_text(Path(path), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> WaveProfile:
        """Reads a saved profile; ValueError if the file is none."""
        data = read_saved(path, "wave profile", SCHEMA)
        known = {"demand", "layers", "model", "rho", "source", "schema"}
        if set(data) != known:
            raise ValueError(f"{path}: a wave profile has the fields {sorted(known)}, got {sorted(data)}")
        if not (
            isinstance(data["demand"], list) and isinstance(data["layers"], list) and isinstance(data["model"], dict)
        ):
            raise ValueError(f"{path}: demand and layers of a wave profile are lists, model is an object")
        return cls(**{**data, "demand": tuple(data["demand"]), "layers": tuple(data["layers"])})


class _ProbeLayer(DynamicLayer):
    """A stock layer that measures the demand of the last forward pass on the way."""

    def __init__(self, rho: float, queries: int) -> None:
        super().__init__()
        self.rho, self.queries, self.demand = rho, queries, 0.0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        keys._reasonalloc = self
        return keys, values

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        from reasonalloc.attention import sdpa

        self.demand = demand(query[0, :, -self.queries :], key[0], self.rho)
        del key._reasonalloc  # type: ignore[attr-defined]
        return sdpa(module, query, key, value, attention_mask, scaling, **kwargs)


def measure(model: Any, ids: torch.Tensor, rho: float = 0.93, queries: int = PROBE_QUERIES) -> dict[int, float]:
    """Demand of every full-attention layer for one sequence of token ids [1, n], by layer index."""
    from reasonalloc.attention import using
    from reasonalloc.compat import is_full_attention, stock_layers

    layers = [_ProbeLayer(rho, queries) if is_full_attention(x) else x for x in stock_layers(model)]
    with using(model), torch.no_grad():
        model(input_ids=ids, past_key_values=Cache(layers=layers), use_cache=True, logits_to_keep=1)
    return {i: layer.demand for i, layer in enumerate(layers) if isinstance(layer, _ProbeLayer)}


def profile(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    rho: float = 0.93,
    queries: int = PROBE_QUERIES,
    progress: bool = True,
) -> WaveProfile:
    """Measures the layer wave of a model on at most 8 prompts with their generated chains.

    For each prompt a chain of up to max_new_tokens is generated greedily with the full cache, all in one batch; the
    demand of each layer (`demand`) is then taken from the last `queries` tokens of prompt and chain, and averaged over
    the prompts.
    progress: show a bar on standard error. Raises ValueError for no or more than 8 prompts.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise ValueError(f"a wave is measured on 1 to {MOST_PROMPTS} prompts, got {len(prompts)}")
    if not 0 < rho < 1 or queries < 1 or max_new_tokens < 1:
        raise ValueError(
            f"rho must lie in (0, 1), queries and max_new_tokens be positive; got {rho}, {queries}, {max_new_tokens}"
        )
    sums: dict[int, float] = {}
    for chain in _chains(model, tokenizer, prompts, max_new_tokens, progress):
        for layer, value in measure(model, chain, rho, queries).items():
            sums[layer] = sums.get(layer, 0.0) + value / len(prompts)
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    source = {
        "model": name,
        "config": digest(fingerprint(model)),
        "tokenizer": digest(sorted(vocabulary.items())),
        "prompts": digest(prompts),
        "prompt_count": len(prompts),
        "max_new_tokens": max_new_tokens,
        "queries": queries,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return WaveProfile(tuple(sums.values()), tuple(sums), fingerprint(model), rho, source)


def _chains(model: Any, tokenizer: Any, prompts: Sequence[str], most: int, progress: bool) -> Iterator[torch.Tensor]:
    """Token ids [1, n] of each prompt with its greedy chain, end token included; all are generated in one batch."""
    every = [encode_prompt(tokenizer, prompt, model.device)[0] for prompt in prompts]
    tokens, mask = (x.to(model.device) for x in left_padded(every))
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    stop = torch.tensor(sorted(ends(model, tokenizer)), dtype=tokens.dtype, device=tokens.device)
    made: list[torch.Tensor] = []
    ended = torch.zeros(len(every), dtype=torch.bool, device=tokens.device)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), tqdm(desc="measuring the wave", unit="token", total=most, disable=not progress) as bar:
        while len(made) < most and not ended.all():
            logits = model(
                input_ids=tokens, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            tokens = logits.argmax(-1, keepdim=True)
            made.append(tokens)
            ended |= torch.isin(tokens[:, 0], stop)
            mask = F.pad(mask, (0, 1), value=1)
            places = places[:, -1:] + 1
            bar.update()
    chains = torch.cat(made, 1)
    for own, chain, end in zip(every, chains, torch.isin(chains, stop), strict=True):
        yield torch.cat([own, chain[: int(end.int().argmax()) + 1 if end.any() else len(chain)]])[None]
