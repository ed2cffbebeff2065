"""Mixed attention: of each KV head the full and the local one, weighed by its gate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from reasonalloc.hf.attention import AttentionSpec
from reasonalloc.hf.compat import budgeted_layers, unwrapped
from reasonalloc.protocols import Model

NAME = "reasonalloc_mixed"
_STATE = "_reasonalloc_mixed"


class Mixture:
    """gates: [layers with a budget, KV heads], kept outside the model. sinks, recent: what a local head sees.

    A head's output is gate * full + (1 - gate) * local, the same gate for all query heads of its group; local is what a
    token sees of the row's first `sinks` tokens and the `recent` newest, itself included. packed: a pass of one token a
    row attends once, with the queries of a group as rows of one KV head, full beside local: quicker on a GPU, and the
    same up to rounding.
    """

    def __init__(self, gates: torch.Tensor, sinks: int, recent: int, packed: bool = False) -> None:
        if sinks < 0 or recent < 1:
            raise ValueError(f"sinks must be from 0 and recent from 1, got {sinks} and {recent}")
        self.gates, self.sinks, self.recent, self.packed = gates, sinks, recent, packed
        self._of: torch.Tensor | None = None
        self._masks: tuple[torch.Tensor, torch.Tensor] | None = None
        self._bias: torch.Tensor | None = None

    def masks(self, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, 1, T, n] of full and of local heads; all layers of a pass are given one mask, which is looked at once."""
        if self._masks is None or self._of is not mask:
            self._of, self._masks, self._bias = mask, self._both(mask), None
        return self._masks

    def bias(self, mask: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
        """[B, 1, 2 * group, n], for one token a row: what is added to a group's scores, full heads' first."""
        masks = self.masks(mask)
        if self._bias is None:
            seen = torch.cat([x.expand(-1, -1, group, -1) for x in masks], 2)
            self._bias = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf)
        return self._bias

    def _both(self, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        real = mask[:, 0, -1]  # padding is on the left, so the newest token is one and sees all that are
        positions = real.long().cumsum(-1) - 1
        queries = positions[:, mask.shape[-1] - mask.shape[-2] :]
        near = (positions[:, None] < self.sinks) | (queries[:, :, None] - positions[:, None] < self.recent)
        padding = ~mask.any(-1, keepdim=True)  # their outputs are of no use, but must be numbers
        return mask | padding, (mask & near[:, None]) | padding


def _attention(
    module: Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    spec = AttentionSpec.of(module, query, scaling, options)
    if spec.softcap or spec.sinks is not None:  # torch's attention would leave them out without a word
        what = "caps its logits" if spec.softcap else "has sinks, logits without a token"
        raise ValueError(f"{type(module).__name__} {what}, which mixed attention does not follow")
    state = getattr(module, _STATE, None)
    if state is None:  # a layer without a budget
        out: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )[0]
        return out, None
    mixture, order = state
    if attention_mask is None:
        raise ValueError("mixed attention was given no mask")
    if mixture.packed and query.shape[2] == 1:
        return _of_one_token(mixture, order, query, key, value, attention_mask, scaling), None
    masks = mixture.masks(attention_mask)
    full, local = (
        sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **options)[0] for mask in masks
    )
    gates = mixture.gates[order].to(query.device)  # layers may lie on several devices
    gates = gates.repeat_interleave(query.shape[1] // key.shape[1])[:, None]  # [Hq, 1]
    exact = torch.promote_types(full.dtype, torch.float32)
    mixed = local.to(exact) + gates * (full.to(exact) - local.to(exact))
    return mixed.to(full.dtype), None


def _of_one_token(
    mixture: Mixture,
    order: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    rows, heads, _, size = query.shape
    group = heads // key.shape[1]
    queries = query.view(rows, key.shape[1], group, size).repeat(1, 1, 2, 1)
    bias = mixture.bias(mask, group, query.dtype).expand(-1, key.shape[1], -1, -1)
    both = scaled_dot_product_attention(queries, key, value, attn_mask=bias, scale=scaling)
    exact = both.to(torch.promote_types(both.dtype, torch.float32))
    gates = mixture.gates[order].to(query.device, exact.dtype)[:, None, None]
    mixed = torch.lerp(exact[:, :, group:], exact[:, :, :group], gates)
    return mixed.to(both.dtype).reshape(rows, 1, heads, -1)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    mask: torch.Tensor | None = sdpa_mask(*args, **(kwargs | {"allow_is_causal_skip": False}))
    return mask


# Without the second line transformers would silently pass no mask at all.
AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def mixing(model: Model, mixture: Mixture) -> Iterator[None]:
    """The model with mixed attention inside the block; as before afterwards, errors included.

    ValueError for gates of another shape than its layers with a budget x KV heads.
    """
    model = unwrapped(model)
    numbers = {index: order for order, index in enumerate(budgeted_layers(model))}
    modules: list[Any] = [m for m in model.modules() if getattr(m, "layer_idx", None) in numbers]
    shape = gate_shape(model)
    if tuple(mixture.gates.shape) != shape:
        raise ValueError(f"gates have the shape {list(mixture.gates.shape)}, the model's is {list(shape)}")
    previous = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        for module in modules:
            setattr(module, _STATE, (mixture, numbers[module.layer_idx]))
        yield
    finally:
        for module in modules:
            vars(module).pop(_STATE, None)
        model.set_attn_implementation(previous)


def gate_shape(model: Model) -> tuple[int, int]:
    """(layers with a budget, KV heads)."""
    config = model.config.get_text_config(decoder=True)
    return len(budgeted_layers(model)), int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
