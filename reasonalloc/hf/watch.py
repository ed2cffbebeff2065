"""Looking at what a model's attention layers are given, in forward passes over a stock cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module
from transformers.cache_utils import Cache

from reasonalloc.hf.attention import expect, own_attention
from reasonalloc.hf.compat import is_full_attention, stock_layers
from reasonalloc.protocols import Model

# layer, queries [B, Hq, T, D], and of the same tokens keys [B, H, T, D] and values [B, H, T, Dv]
Look = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]


class WatchedCache(Cache):
    """A stock cache that shows what each layer with full attention is given for the new tokens.

    Of a model in `using(model)`. The look comes before the attention, so that hooks for gradients can be set.
    """

    def __init__(self, model: Model, look: Look) -> None:
        super().__init__(layers=stock_layers(model))
        self.look = look

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if is_full_attention(self.layers[layer_idx]):
            expect(self, layer_idx, keys)
        return keys, values

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
