"""Rotary embeddings that change in mid-text."""

from __future__ import annotations

from reasonalloc.protocols import Model

# generate() of these reads a text anew, with a fresh cache, where it grows past the length that the short factors of
# its rotary embedding are for. That is not for a cache with a budget: the text it was cut from is gone.
_RESTARTING = ("phi3", "phimoe", "phi4_multimodal")


def drops_caches(model: Model) -> bool:
    """Whether a model's generate() drops a cache that holds at most `original_max_position_embeddings` tokens."""
    return model.config.get_text_config(decoder=True).model_type in _RESTARTING


def rope_switch(model: Model) -> int | None:
    """Tokens beyond which a model's rotary embedding is another one, for what is cached as well; None for none."""
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    length = getattr(config, "original_max_position_embeddings", None)
    return int(length) if rope.get("rope_type") == "longrope" and length and drops_caches(model) else None


def check_rope(switch: int, length: int, tokens: int) -> None:
    """Raises ValueError for a forward pass that takes a cache of `length` tokens past the switch."""
    if 0 < length <= switch < length + tokens:
        raise ValueError(
            f"the model's rotary embedding changes beyond {switch} tokens (original_max_position_embeddings): keys of"
            f" the {length} tokens in the cache would not fit those that follow. Keep a text within {switch} tokens, or"
            f" begin with a prompt of more"
        )
