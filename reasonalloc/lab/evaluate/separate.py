"""How much of what a cache loses comes from its scores, and how much from its budgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch

from reasonalloc.config import Config
from reasonalloc.hf.attention import using
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.replay import replay
from reasonalloc.lab.evaluate.forcing import forced_log_probs, full_log_probs
from reasonalloc.protocols import Model
from reasonalloc.trace.file import Trace


@dataclass(frozen=True)
class Separation:
    """KL(full || cache), nats a token of the trace's chain, of three caches.

    trace: the trace's evictions. scores: the config's scores in the trace's budgets. own: the config's scores in its
    own budgets. So scores - trace is what the choice of tokens makes of it, own - scores what the budgets do.
    """

    trace: float
    scores: float
    own: float

    def as_json(self) -> dict[str, float]:
        """JSON-ready, with the two differences."""
        return {**asdict(self), "by_scores": self.scores - self.trace, "by_budgets": self.own - self.scores}


def separate(trace: Trace, model: Model, config: Config) -> Separation:
    """Compares a config with a trace on the trace's own text, by teacher forcing.

    The prompt is fed at once, as it was when the trace was recorded. Raises ValueError where `replay` does, and for a
    trace without a chain of at least one token.
    """
    prompt, chain = trace.prompt_ids(), trace.chain_ids()
    if not len(prompt) or not len(chain):
        raise ValueError(f"a trace needs a prompt and a chain, got {len(prompt)} and {len(chain)} tokens")
    with using(model):
        caches = [replay(trace, model, force="evictions"), replay(trace, model, config)]
        direct = ReasonAllocCache(model, config)
        reference = full_log_probs(model, prompt, chain)
        rows = [cache.log_probs() for cache in caches]
        kl = [_kl(reference, x) for x in [*rows, forced_log_probs(model, direct, prompt, chain)]]
    return Separation(*kl)


def _kl(reference: torch.Tensor, rows: Iterable[torch.Tensor]) -> float:
    total = 0.0
    for full, row in zip(reference, rows, strict=True):
        gap = torch.where(full > float("-inf"), full.exp() * (full - row), 0.0)
        total += float(gap.sum(dtype=torch.float64))
    return max(total / len(reference), 0.0)  # rounding may leave it a little below
