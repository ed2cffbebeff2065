"""The cut of one layer in the C core. Nothing else calls the methods of `_core.Layer` that cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reasonalloc import _core
from reasonalloc.allocate import HEADS
from reasonalloc.policy.heads import HeadArguments
from reasonalloc.policy.scorers import ScoreArguments
from reasonalloc.score import SCORERS
from reasonalloc.store.pages import PagePool

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int32]


class CutLayer(Protocol):
    """A layer with a budget. index: its number in the model; order: among those that have a budget."""

    index: int
    order: int
    heads: int
    query_heads: int
    head_dim: int

    @property
    def held(self) -> _core.Layer: ...


def row_tokens(layer: CutLayer) -> list[int]:
    """[rows] tokens that each row of a layer has been given."""
    return [layer.held.seen(row) for row in range(layer.held.rows)]


class CoreCut:
    """The cut of the rows of a layer that are over their totals: in phases, or in one call.

    totals, protect: [rows] slots that stay, positions below which tokens go last. rows: those that are over. slots:
    [rows, heads] before the cut. budgets, lost, evicted: [rows, heads], filled on the way.
    """

    def __init__(self, layer: CutLayer, pool: PagePool, window: int, totals: Ints, protect: Ints) -> None:
        self.layer, self.core, self.pool, self.window = layer, layer.held, pool, window
        self.totals, self.protect = totals, protect
        self.slots = self._slots()
        self.rows: list[int] = np.flatnonzero(self.slots.sum(1) > totals).tolist()
        if not self.rows:
            return
        shape = self.slots.shape
        self.budgets, self.lost = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        self._scores: dict[int, list[Floats]] = {}
        self.evicted = np.zeros(shape, dtype=np.int64)

    def _slots(self) -> Ints:
        slots = np.zeros((self.core.rows, self.layer.heads), dtype=np.int64)
        self.core.slots(slots)
        return slots

    def tokens(self, row: int) -> int:
        """Tokens that a row has been given."""
        return self.core.seen(row)

    def older(self, row: int) -> Ints:
        """[heads] tokens before the window."""
        older: Ints = np.maximum(self.slots[row] - self.window, 0)
        return older

    def positions(self, row: int) -> tuple[Positions, ...]:
        """Of each head, ascending; read-only."""
        return tuple(np.frombuffer(self.core.positions(row, h), np.int32) for h in range(self.layer.heads))

    def run(self, score: ScoreArguments, heads: HeadArguments) -> None:
        """All phases in one call, for parts that are in C."""
        flags = np.zeros(self.core.rows, dtype=np.bool_)
        arguments = (self.totals, self.protect, _score(score), _heads(heads), self.budgets, self.lost, flags)
        while missing := self.core.compress(*arguments):
            self.pool.grow(missing)
        self._count()

    def score(self, score: ScoreArguments) -> None:
        """Phase 1: the C scorer's scores."""
        for row in self.rows:
            older = self.older(row)
            flat = np.empty(int(older.sum()), dtype=np.float32)
            self.core.score(row, _score(score), flat)
            self._scores[row] = np.split(flat, np.cumsum(older)[:-1])

    def scores(self, row: int) -> list[Floats]:
        """Of each head's tokens before the window, oldest first."""
        return self._scores[row]

    def set_scores(self, row: int, scores: list[Floats]) -> None:
        """Puts others in their place."""
        self._scores[row] = scores

    def allocate(self, heads: HeadArguments) -> None:
        """Phase 2: the C allocator's budgets. What every head still holds of the protected tokens is not shared out."""
        for row in self.rows:
            scores, total = self.scores(row), int(self.totals[row])
            base = self._spared(row)
            rest = np.empty(self.layer.heads, dtype=np.int64)
            counts = np.array([len(x) - base for x in scores], dtype=np.int64)
            _core.route(
                np.concatenate([x[base:] for x in scores]), counts, self.window, total - base * self.layer.heads,
                _heads(heads), rest,
            )  # fmt: skip
            self.budgets[row] = rest + base

    def _spared(self, row: int) -> int:
        least = int(self.totals[row]) // self.layer.heads - self.window
        older = zip(self.positions(row), self.older(row), strict=True)
        return max(0, min(least, *(int(np.searchsorted(p[:n], self.protect[row])) for p, n in older)))

    def apply(self) -> None:
        """Phases 3 and 4: chooses what stays and evicts the rest."""
        for row in self.rows:
            arguments = (self.budgets[row], np.concatenate(self.scores(row)), int(self.protect[row]), self.lost[row])
            while missing := self.core.evict(row, *arguments):
                self.pool.grow(missing)
        self._count()

    def _count(self) -> None:
        self.evicted = self.slots - self._slots()


def _score(score: ScoreArguments) -> tuple[Any, ...]:
    return (SCORERS[score.scorer], *score[1:])


def _heads(heads: HeadArguments) -> tuple[Any, ...]:
    return (HEADS[heads.heads], *heads[1:])


def read_only(arrays: Iterable[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], ...]:
    """Views that cannot be written through."""
    views = tuple(x.view() for x in arrays)
    for view in views:
        view.flags.writeable = False
    return views
