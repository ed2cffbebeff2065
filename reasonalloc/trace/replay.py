"""A trace forced on the same text: its budgets with other scores, or its very evictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc.config import Config
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import cache_argument, is_full_attention, stock_layers
from reasonalloc.hf.layer import RaggedLayer
from reasonalloc.policy.budgets import Budgets
from reasonalloc.policy.cut import Cutter
from reasonalloc.trace.file import Trace

FORCES = ("budgets", "evictions")

Floats = npt.NDArray[np.float32]


def replay(
    trace: Trace,
    model: Any,
    config: Config | None = None,
    *,
    force: str = "budgets",
    ids: Any = None,
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
    trace.check(model, [i for i, layer in enumerate(stock_layers(model)) if is_full_attention(layer)])
    if ids is not None:
        _check_text(trace, ids)
    return ReplayCache(model, _config(trace, config, force), trace, force, record=record)


def _check_text(trace: Trace, ids: Any) -> None:
    given = np.asarray(ids.detach().cpu() if isinstance(ids, torch.Tensor) else ids).reshape(-1)
    shared = min(len(given), len(trace.ids))
    other = np.flatnonzero(given[:shared] != trace.ids[:shared])
    if len(other):
        i = int(other[0])
        raise ValueError(f"the trace is of another text: token {i} is {trace.ids[i]} there and {given[i]} here")
    if len(given) != len(trace.ids):
        raise ValueError(f"the trace is of a text of {len(trace.ids)} tokens, got {len(given)}")


def _config(trace: Trace, config: Config | None, force: str) -> Config:
    # Sizes and allocators do not matter: what each head gets is in the trace.
    sizes: dict[str, Any] = {"ratio": None, "max_bytes": None, "layers": "uniform", "heads": "uniform"}
    sizes |= {"budget": trace.window + 1, "window": trace.window, "interval": trace.interval}
    if force == "evictions":
        return Config(method="rkv", scorer="recency", keep_prompt=False, sinks=0, **sizes)
    config = config if config is not None else trace.config()
    if config.resolve().unlimited:
        raise ValueError(f"method {config.method!r} keeps every token, so it has no scores to fill the budgets with")
    for name in ("window", "interval"):
        own, given = getattr(trace, name), getattr(config, name)
        if given not in (None, own):
            raise ValueError(f"{name} must be the trace's {own}, got {given}")
    return replace(config, profile=None, **sizes)


class ReplayCache(ReasonAllocCache):
    """See `replay`, which makes one."""

    def __init__(self, model: Any, config: Config, trace: Trace, force: str, *, record: bool = False) -> None:
        super().__init__(model, config, record=record)
        self.replayed, self.force = trace, force

    def _begin_step(self, key: torch.Tensor) -> None:
        rows, _, tokens, _ = key.shape
        trace, length = self.replayed, self.ragged[0].length
        if rows != 1:
            raise ValueError(f"a trace is of one row, got a batch of {rows}")
        end = length + tokens
        if end > len(trace.ids):
            raise ValueError(f"the trace ends after {len(trace.ids)} tokens, got {end}")
        following = int(np.searchsorted(trace.cuts, length, side="right"))
        ahead = int(trace.cuts[following]) - end if following < len(trace.cuts) else -1
        if following < len(trace.cuts) and ahead < 0:
            raise ValueError(
                f"the trace was cut after {trace.cuts[following]} tokens, and this step goes from {length} to {end}:"
                " feed the prompt in the chunks that it had"
            )
        super()._begin_step(key)
        self.step.schedule(ahead)

    def _make_cutter(self, budgets: Budgets) -> Cutter:
        return _ReplayCutter(self, budgets)

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


class _ReplayCutter(Cutter):
    """Takes budgets, and where asked the choice of tokens, from a trace."""

    def __init__(self, cache: ReplayCache, budgets: Budgets) -> None:
        super().__init__(cache.ragged, cache.config, cache.method, budgets, cache._make_recorder())
        self.in_python = True
        self._trace, self._chooses = cache.replayed, cache.force == "evictions"
        self._everything = len(self._trace.ids) * self.heads
        self.totals_now[:] = self._everything

    def _cut_at(self, layer: RaggedLayer) -> int:
        """Number of the trace's cut that is due."""
        seen, cuts = layer.held.tokens(0), self._trace.cuts
        number = int(np.searchsorted(cuts, seen))
        if number == len(cuts) or cuts[number] != seen:
            raise ValueError(f"the trace was not cut after {seen} tokens: a trace is replayed without padding")
        return number

    def _totals(self, layer: RaggedLayer) -> npt.NDArray[np.int64]:
        budgets = self._trace.budgets[self._cut_at(layer), layer.order]
        return np.array([self._everything if (budgets < 0).any() else budgets.sum()], dtype=np.int64)

    def _shares(self, layer: RaggedLayer, row: int, scores: list[Floats], total: int, protect: int) -> Any:
        return self._trace.budgets[self._cut_at(layer), layer.order]

    def _scores(self, layer: RaggedLayer, row: int, older: npt.NDArray[np.int64]) -> list[Floats]:
        if not self._chooses:
            return super()._scores(layer, row, older)
        self._begin(layer, row, None)
        number = self._cut_at(layer) + 1
        positions = [np.frombuffer(layer.held.positions(row, h), np.int32) for h in range(layer.heads)]
        gone = [g[p[:n]] for g, p, n in zip(self._trace.gone[layer.order], positions, older, strict=True)]
        return [np.where(x == number, 0, 1).astype(np.float32) for x in gone]
