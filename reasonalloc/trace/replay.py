"""A trace as a policy: its cut times, its budgets, and where asked its evictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from reasonalloc.config import Config
from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LayerAllocator
from reasonalloc.policy.policy import Policy
from reasonalloc.policy.schedule import Schedule
from reasonalloc.policy.scorers import Scorer
from reasonalloc.policy.view import HeadView, LayerView, Numbers, RowView
from reasonalloc.trace.file import Ints, Trace


def _cut_after(trace: Trace, tokens: int) -> int:
    """Number of the trace's cut after that many tokens."""
    number = int(np.searchsorted(trace.cuts, tokens))
    if number == len(trace.cuts) or trace.cuts[number] != tokens:
        raise ValueError(f"the trace was not cut after {tokens} tokens: a trace is replayed without padding")
    return number


@dataclass(frozen=True)
class TraceSchedule(Schedule):
    """Cuts when the trace was cut. One row; a step that runs past a cut or the trace's end is a ValueError."""

    trace: Trace | None = None

    def steps_left(self, rows: int, length: int, since: int, tokens: int) -> int:
        if self.trace is None:
            return super().steps_left(rows, length, since, tokens)
        ids, cuts = self.trace.ids, self.trace.cuts
        if rows != 1:
            raise ValueError(f"a trace is of one row, got a batch of {rows}")
        end = length + tokens
        if end > len(ids):
            raise ValueError(f"the trace ends after {len(ids)} tokens, got {end}")
        following = int(np.searchsorted(cuts, length, side="right"))
        if following == len(cuts):
            return -1
        if end > cuts[following]:
            raise ValueError(
                f"the trace was cut after {cuts[following]} tokens, and this step goes from {length} to {end}: feed the"
                " prompt in the chunks that it had"
            )
        return int(cuts[following]) - end


@dataclass(frozen=True)
class TraceLayers(LayerAllocator):
    """A layer's total is what its heads had in the trace; a layer that was not cut there may keep everything."""

    trace: Trace

    sets_total = True

    def totals(self, claims: npt.NDArray[np.float64], total: int, view: RowView) -> Numbers:
        everything = len(self.trace.ids) * self.trace.heads
        if not view.tokens:
            return np.full(len(claims), everything)
        budgets = self.trace.budgets[_cut_after(self.trace, view.tokens)]
        return np.where((budgets < 0).any(-1), everything, budgets.sum(-1))


@dataclass(frozen=True)
class TraceHeads(HeadAllocator):
    """Every head gets what it had in the trace."""

    trace: Trace

    def shares(self, scores: Sequence[npt.NDArray[np.float32]], total: int, view: LayerView) -> Numbers:
        number, layer = _cut_after(self.trace, view.tokens), self.trace.layers.index(view.layer)
        budgets: Ints = self.trace.budgets[number, layer]
        return budgets


@dataclass(frozen=True)
class TraceScorer(Scorer):
    """What went in the trace is worth nothing, all else the same."""

    trace: Trace

    def score(self, view: HeadView) -> Numbers:
        number = _cut_after(self.trace, view.tokens) + 1
        gone = self.trace.gone[self.trace.layers.index(view.layer), view.head]
        return np.where(gone[view.positions.numpy()] == number, 0, 1)


def replay_config(trace: Trace, config: Config | None, force: str) -> Config:
    """What a replay follows besides the trace; ValueError where `config` asks for something else than the trace has."""
    # Sizes and allocators do not matter: what each head gets is in the trace.
    sizes: dict[str, Any] = {"ratio": None, "max_bytes": None, "layers": "uniform", "heads": "uniform"}
    sizes |= {"budget": trace.window + 1, "window": trace.window, "interval": trace.interval}
    if force == "evictions":
        return Config(method="rkv", scorer="recency", keep_prompt=False, sinks=0, **sizes)
    config = config if config is not None else trace.config()
    if config.resolve().unlimited:
        raise ValueError(f"method {config.method!r} keeps every token, so it has no scores to fill the budgets with")
    for name in ("window", "interval"):
        traced, given = getattr(trace, name), getattr(config, name)
        if given not in (None, traced):
            raise ValueError(f"{name} must be the trace's {traced}, got {given}")
    return replace(config, profile=None, **sizes)


def replay_policy(trace: Trace, config: Config, force: str) -> Policy:
    """The trace's schedule and allocators with the scorer of `config`, or with the trace's evictions.

    config: of `replay_config`. force: "budgets" or "evictions".
    """
    policy = config.policy()
    schedule = {name: getattr(policy.schedule, name) for name in ("interval", "window", "keep_prompt", "sinks")}
    return replace(
        policy,
        scorer=TraceScorer(trace) if force == "evictions" else policy.scorer,
        layers=TraceLayers(trace),
        heads=TraceHeads(trace),
        schedule=TraceSchedule(**schedule, trace=trace),
    )
