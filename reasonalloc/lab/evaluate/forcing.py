"""Teacher forcing: a model's log-probabilities of a given text, with the full cache and with a compressed one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import cache_argument


def full_log_probs(model: Any, prompt: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Log-probabilities before each token of `text` with everything before it in sight: [T, V] float32.

    prompt: [P] token ids, at least one; text: [T] token ids. One ordinary forward pass without a cache.
    """
    ids = torch.cat([prompt.to(model.device), text.to(model.device)])[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(text) + 1).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1)


def forced_log_probs(
    model: Any, cache: ReasonAllocCache, prompt: torch.Tensor, text: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The same with a cache, one [V] float32 for each token of `text`.

    The prompt is the prefill; then one token a forward pass, so that the cache is cut exactly as in decoding. The
    last token of `text` is never fed. `cache` must be empty.
    """
    if cache.get_seq_length():
        raise ValueError(f"the cache must be empty, it was given {cache.get_seq_length()} tokens")
    step = prompt[None].to(model.device)
    for token in text.to(model.device):
        with torch.no_grad():
            logits = model(input_ids=step, **cache_argument(cache), use_cache=True, logits_to_keep=1).logits[0, -1]
        yield torch.log_softmax(logits.float(), dim=-1)
        step = token.view(1, 1)
