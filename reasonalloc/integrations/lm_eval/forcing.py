"""Teacher forcing of a batch through a compressed cache: what a model would give each token while decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.tokens import left_padded

Row = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Score:
    """Of one row: log-probability of its continuation, whether greedy search would say it, tokens after an eviction."""

    log_prob: float
    greedy: bool
    after_eviction: int


def score(model: Any, cache: ReasonAllocCache, rows: Sequence[Row]) -> list[Score]:
    """rows: (context, continuation), token ids, neither empty. `cache` must be empty.

    The contexts, padded on the left, are the prefill; then each continuation goes in token by token, so the cache is
    cut exactly as in decoding. Rows that are done go on with a token of no interest, as in `generate`.
    """
    device = model.device
    ids, mask = (x.to(device) for x in left_padded([context for context, _ in rows]))
    most = max(len(continuation) for _, continuation in rows)
    targets = torch.zeros(len(rows), most, dtype=torch.long, device=device)
    wanted = torch.zeros(len(rows), most, dtype=torch.bool, device=device)
    for i, (_, continuation) in enumerate(rows):
        targets[i, : len(continuation)] = torch.tensor(continuation, device=device)
        wanted[i, : len(continuation)] = True
    log_probs = torch.zeros(len(rows), most, dtype=torch.float64, device=device)
    greedy, evicted = torch.ones_like(wanted), torch.zeros_like(wanted)

    step, positions = ids, (mask.cumsum(-1) - 1).clamp(min=0)
    for i in range(most):
        with torch.no_grad():
            logits = model(
                input_ids=step, attention_mask=mask, position_ids=positions, **cache_argument(cache), use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1].float()  # fmt: skip
        step = targets[:, i : i + 1]
        log_probs[:, i] = torch.log_softmax(logits, -1).gather(-1, step)[:, 0]
        greedy[:, i] = logits.argmax(-1) == step[:, 0]
        if i + 1 < most:  # the cut of this pass is seen by the next token, not by the one just read
            least = torch.tensor(cache.slots(), device=device).flatten(1).amin(1)
            evicted[:, i + 1] = least < mask.sum(1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
    return [
        Score(float(log_probs[i][own].sum()), bool(greedy[i][own].all()), int(evicted[i][own].sum()))
        for i, own in enumerate(wanted)
    ]
