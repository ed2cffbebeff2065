"""A trace forced on the same text: its budgets with other scores, or its very evictions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from reasonalloc.config import Config
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import budgeted_layers, cache_argument
from reasonalloc.protocols import Model
from reasonalloc.trace.file import Trace
from reasonalloc.trace.recorder import Ids
from reasonalloc.trace.replay import replay_config, replay_policy

FORCES = ("budgets", "evictions")


def replay(
    trace: Trace,
    model: Model,
    config: Config | None = None,
    *,
    force: str = "budgets",
    ids: Ids | None = None,
    record: bool = False,
) -> ReplayCache:
    """A cache that is cut when the trace was cut, for one row and the trace's text.

    force="budgets": every head gets the slots that it had in the trace, and what fills them is chosen by the scores of
    `config` (its method or scorer; what it says of sizes and allocators does not matter). None: the trace's own.
    force="evictions": the trace's tokens go, whatever their scores; takes no config.
    ids: [n] token ids that are going to be fed, where they do not come from the trace itself; checked against it.
    record: as in ReasonAllocCache.

    Feed the cache as any other, say by `evaluate.forced_log_probs(model, cache, trace.prompt_ids(),
    trace.chain_ids())`, or take `cache.log_probs()`. A step that would run past a cut or the end of the trace is a
    ValueError that leaves the cache as it was.

    Raises ValueError for a model of another shape, another text, a window or interval other than the trace's, or a
    method that keeps everything.
    """
    if force not in FORCES:
        raise ValueError(f"force must be one of {', '.join(FORCES)}, got {force!r}")
    if force == "evictions" and config is not None:
        raise ValueError("force='evictions' leaves nothing to a config: give none, or force='budgets'")
    trace.check(model, budgeted_layers(model))
    if ids is not None:
        _check_text(trace, ids)
    followed = replay_config(trace, config, force)
    cache = ReplayCache(model, followed, record=record, policy=replay_policy(trace, followed, force))
    cache.replayed = trace
    return cache


def _check_text(trace: Trace, ids: Ids) -> None:
    given = np.asarray(ids.detach().cpu() if isinstance(ids, torch.Tensor) else ids).reshape(-1)
    shared = min(len(given), len(trace.ids))
    other = np.flatnonzero(given[:shared] != trace.ids[:shared])
    if len(other):
        i = int(other[0])
        raise ValueError(f"the trace is of another text: token {i} is {trace.ids[i]} there and {given[i]} here")
    if len(given) != len(trace.ids):
        raise ValueError(f"the trace is of a text of {len(trace.ids)} tokens, got {len(given)}")


class ReplayCache(ReasonAllocCache):
    """A cache with a trace's policy, and the text that belongs to it; `replay` makes one."""

    replayed: Trace

    def log_probs(self) -> Iterator[torch.Tensor]:
        """Feeds the trace's text to the model: log-probabilities [V], float32, before each token of the chain.

        The prompt goes in at once, or in pieces that end at its cuts; then one token a step. The last token is never
        fed. The cache must be empty (RuntimeError).
        """
        if self.get_seq_length():
            raise RuntimeError(f"the cache must be empty, it was given {self.get_seq_length()} tokens")
        trace, ids = self.replayed, torch.from_numpy(self.replayed.ids.astype(np.int64)).to(self.model.device)
        ends = [int(c) for c in trace.cuts if c < trace.prompt]
        ends += range(max(trace.prompt, 1), len(ids))
        begin = 0
        for end in ends:
            with torch.no_grad():
                step = ids[None, begin:end]
                logits = self.model(input_ids=step, **cache_argument(self), use_cache=True, logits_to_keep=1).logits
            if end >= trace.prompt:
                yield torch.log_softmax(logits[0, -1].float(), dim=-1)
            begin = end
