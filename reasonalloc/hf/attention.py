"""The attention function that transformers calls, and switching a model to it and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from reasonalloc.hf.compat import unwrapped

NAME = "reasonalloc"
_PREVIOUS = "_reasonalloc_previous_attention"

# What the ragged attention does not compute; models that ask for it must not be answered wrongly.
_UNSUPPORTED = ("softcap", "position_bias", "s_aux")


def sdpa(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    **kwargs: Any,
) -> torch.Tensor:
    """Stock scaled dot-product attention: [B, T, Hq, D]."""
    output: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)[
        0
    ]
    return output


def attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Called by every attention module of a model set to "reasonalloc".

    A cache layer of ours marks the keys that it returns with itself; other caches' keys go to stock attention, so a
    model stays usable without our cache.
    """
    layer = getattr(key, "_reasonalloc", None)
    if layer is None:
        return sdpa(module, query, key, value, attention_mask, scaling, **kwargs), None
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__} uses {name}, which the ragged attention does not support")
    return layer.attend(module, query, key, value, attention_mask, scaling, **kwargs), None


# Without the second line transformers would silently pass no mask at all.
AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


def is_active(model: Any) -> bool:
    return bool(unwrapped(model).config.get_text_config(decoder=True)._attn_implementation == NAME)


def activate(model: Any) -> None:
    """Switches the model to our attention, remembering what it had."""
    model = unwrapped(model)
    if is_active(model):
        return
    previous: dict[str, Any] = {"": model.config._attn_implementation}
    for key in model.config.sub_configs:
        sub = getattr(model.config, key, None)
        if sub is not None:
            previous[key] = sub._attn_implementation
    model.set_attn_implementation(NAME)
    if not is_active(model):
        raise ValueError(f"{type(model).__name__} does not take its attention from transformers' AttentionInterface")
    setattr(model, _PREVIOUS, previous)


def deactivate(model: Any) -> None:
    """Gives the model back the attention that it had before `activate`; nothing if it was not switched."""
    model = unwrapped(model)
    previous = getattr(model, _PREVIOUS, None)
    if previous is None:
        return
    model.set_attn_implementation(previous if len(previous) > 1 else previous[""])
    delattr(model, _PREVIOUS)


@contextmanager
def using(model: Any) -> Iterator[None]:
    """The model on our attention inside the block; as before afterwards, errors included."""
    was_active = is_active(model)
    activate(model)
    try:
        yield
    finally:
        if not was_active:
            deactivate(model)
