"""Looking at what a model's attention layers are given, in forward passes over a stock cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch.nn import Module
from transformers.cache_utils import Cache

from reasonalloc.hf.attention import AttentionSpec, expect, own_attention, using
from reasonalloc.hf.compat import budgeted_layers, cache_argument, is_full_attention, stock_layers
from reasonalloc.hf.dense import prompt_attention
from reasonalloc.hf.states import one_dtype
from reasonalloc.protocols import Model

# layer, queries [B, Hq, T, D], and of the same tokens keys [B, H, T, D] and values [B, H, T, Dv]
Look = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
T = TypeVar("T")
# queries [Hq, n, D] and keys [H, n, D] of a text, how its logits are computed
LookAtText = Callable[[torch.Tensor, torch.Tensor, AttentionSpec], T]


class _Probe(Cache):
    """A stock cache whose layers with full attention come to `attend`. Of a model in `using(model)`."""

    def __init__(self, model: Model) -> None:
        super().__init__(layers=stock_layers(model))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if is_full_attention(self.layers[layer_idx]):
            expect(self, layer_idx, keys)
        return keys, values


class WatchedCache(_Probe):
    """A stock cache that shows what each layer with full attention is given for the new tokens.

    The look comes before the attention, so that hooks for gradients can be set.
    """

    def __init__(self, model: Model, look: Look) -> None:
        super().__init__(model)
        self.look = look

    def attend(
        self,
        layer: int,
        module: Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        new = query.shape[2]
        # The tensors themselves where they are all: only those have gradients.
        fresh = [x if x.shape[2] == new else x[:, :, -new:] for x in (key, value)]
        self.look(layer, query, *fresh)
        return own_attention(module, query, key, value, attention_mask, scaling, **options)[0]


class _WatchedText(_Probe, Generic[T]):
    """What `look` says of each layer with full attention for the text of a pass."""

    def __init__(self, model: Model, look: LookAtText[T]) -> None:
        super().__init__(model)
        self.look = look
        self.found: dict[int, T] = {}

    def attend(
        self, layer: int, module: Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None, scaling: float | None, options: dict[str, Any],
    ) -> torch.Tensor:  # fmt: skip
        spec = AttentionSpec.of(module, query, scaling, options)
        self.found[layer] = self.look(query[0], key[0], spec)
        return prompt_attention(module, *one_dtype(query, key, value), attention_mask, spec, options)


def of_layers(model: Model, ids: torch.Tensor, look: LookAtText[T]) -> dict[int, T]:
    """What `look` says of every layer that can have a budget for one text, token ids [1, n], by layer index."""
    cache = _WatchedText(model, look)
    with using(model), torch.no_grad():
        model(input_ids=ids, **cache_argument(cache), use_cache=True, logits_to_keep=1)
    return {i: cache.found[i] for i in budgeted_layers(model)}
