"""The cut of one layer in the C core. Nothing else calls the methods of `_core.Layer` that cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from reasonalloc import _core
from reasonalloc.allocate import HEADS
from reasonalloc.policy.heads import HeadArguments
from reasonalloc.policy.scorers import ScoreArguments
from reasonalloc.store.pages import PagePool

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int32]
S = TypeVar("S", bound=np.generic)


class CutLayer(Protocol):
    """A layer with a budget. index: its number in the model; order: among those that have a budget."""

    index: int
    order: int
    heads: int
    query_heads: int
    head_dim: int

    @property
    def core(self) -> _core.Layer: ...
    @property
    def pool(self) -> PagePool: ...


def row_tokens(layer: CutLayer) -> list[int]:
    """[rows] tokens that each row of a layer has been given."""
    return [layer.core.tokens(row) for row in range(layer.core.rows)]


def slots_of(layer: CutLayer) -> Ints:
    """[rows, heads] slots of a layer."""
    slots = np.zeros((layer.core.rows, layer.heads), dtype=np.int64)
    layer.core.slots(slots)
    return slots


class CoreCut:
    """The cut of the rows of a layer that are over their totals: in one call, or in phases.

    The phases are score, allocate, choose and apply, in this order; `abandon` ends a cut before the last one, with the
    layer as it was. totals, protect: [rows] slots that stay (negative: the row is left alone), positions below which
    tokens go last. rows: those that are
    over. slots: [rows, heads] before the cut. budgets, lost, evicted: [rows, heads], filled on the way.

    recalls: the layer's cold tokens come back first, and count as slots in all phases; what is not chosen goes again,
    and rows that have room for all keep them. hot: [rows, heads] slots before they came; evicted counts these alone.
    recalled: [rows, heads] cold tokens that stayed.
    """

    def __init__(self, layer: CutLayer, window: int, totals: Ints, protect: Ints, recalls: bool = False) -> None:
        self.layer, self.core, self.pool, self.window = layer, layer.core, layer.pool, window
        self.totals, self.protect = totals, protect
        self.recalls = recalls
        self.hot = self.slots = slots_of(layer)
        if recalls:
            self._recall()
        # Every layer of every cut is here: np.flatnonzero's two frames cost more than all that is asked.
        self.rows: list[int] = ((totals >= 0) & (self.slots.sum(1) > totals)).nonzero()[0].tolist()
        if not self.rows:
            return
        shape = self.slots.shape
        self.budgets, self.lost = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        self.evicted = np.zeros(shape, dtype=np.int64)
        self._flags = np.zeros(self.core.rows, dtype=np.bool_)

    def _recall(self) -> None:
        while missing := self.core.cut_recall(self.totals):
            self.pool.grow(missing)
        self.slots, self.recalled = slots_of(self.layer), self._recalled()

    def _recalled(self) -> Ints:
        recalled = np.zeros_like(self.hot)
        self.core.cold_recalled(recalled)
        return recalled

    def tokens(self, row: int) -> int:
        """Tokens that a row has been given."""
        return self.core.tokens(row)

    def older(self, row: int) -> Ints:
        """[heads] tokens before the window."""
        older: Ints = np.maximum(self.slots[row] - self.window, 0)
        return older

    def positions(self, row: int) -> tuple[Positions, ...]:
        """Of each head's slots, ascending; read-only."""
        return tuple(np.frombuffer(self.core.positions(row, h), np.int32) for h in range(self.layer.heads))

    def cold_positions(self, row: int) -> tuple[Positions, ...]:
        """Of each head's slots those that came back for this cut, ascending; read-only."""
        return tuple(np.frombuffer(self.core.cold_read(row, h)[0], np.int32) for h in range(self.layer.heads))

    @property
    def pending(self) -> bool:
        """Whether there is anything to apply: rows to cut, or tokens that came back."""
        return bool(self.rows) or (self.slots != self.hot).any()

    def run(self, score: ScoreArguments, heads: HeadArguments) -> None:
        """All phases in one call, for parts that are in C."""
        arguments = (self.totals, self.protect, score, _heads(heads), self.budgets, self.lost, self._flags)
        while missing := self.core.cut(*arguments):
            self.pool.grow(missing)
        self.settle()

    def score(self, score: ScoreArguments | None) -> None:
        """Phase 1: the C scorer's scores; None: `set_scores` gives them for each row."""
        self.core.cut_score(self.totals, score, self._flags, self.protect)

    def scores(self, row: int) -> list[Floats]:
        """Of each head's tokens before the window, oldest first."""
        older = self.older(row)
        flat = np.empty(int(older.sum()), dtype=np.float32)
        self.core.cut_scores(row, flat)
        return np.split(flat, np.cumsum(older)[:-1])

    def set_scores(self, row: int, scores: list[Floats]) -> None:
        """Puts others in their place."""
        self.core.cut_set_scores(row, np.concatenate(scores))

    def narrow(self, totals: Ints) -> None:
        """Other totals, once all is scored: rows that are not over theirs are not cut any more."""
        self.totals = totals
        self.core.cut_set_totals(totals)
        self.rows = [row for row in self.rows if self.slots[row].sum() > totals[row] >= 0]

    def allocate(self, heads: HeadArguments) -> None:
        """Phase 2: the C allocator's budgets. What every head still holds of the protected tokens is not shared out."""
        self.core.cut_allocate(self.protect, _heads(heads), self.budgets)

    def choose(self) -> None:
        """Phase 3: which slots stay in `budgets`, and what attention is lost with the others."""
        self.core.cut_choose(self.protect, self.budgets, self.lost)

    def kept(self, row: int, positions: tuple[Positions, ...]) -> tuple[Positions, ...]:
        """Those of the positions of each head's slots that stay."""
        return tuple(p[np.frombuffer(self.core.cut_kept(row, h), np.int32)] for h, p in enumerate(positions))

    def apply(self) -> None:
        """Phase 4: evicts the rest."""
        while missing := self.core.cut_apply():
            self.pool.grow(missing)
        self.settle()

    def settle(self) -> None:
        """It was applied: counts what went."""
        self.evicted = self.hot - slots_of(self.layer)
        if self.recalls:
            self.recalled = np.maximum(self.recalled, self._recalled())  # of rows that kept all, and of those cut
            self.evicted += self.recalled

    def abandon(self) -> None:
        """Ends a cut that was begun and not applied."""
        self.core.cut_abandon()


def layer_totals(cuts: Sequence[CoreCut], totals: Ints, protect: Ints, r_max: float) -> Ints:
    """[rows, layers] of the rows whose totals [rows] are not negative, -1 elsewhere: `allocate.route_layers` of the
    scores of layers that are being cut. What every head still holds of the protected tokens is not shared out."""
    out = np.full((len(totals), len(cuts)), -1, dtype=np.int64)
    _core.cut_route_layers([cut.core for cut in cuts], totals, protect, r_max, out)
    return out


def apply_all(cuts: Sequence[CoreCut]) -> None:
    """Phase 4 of all these cuts, or of none."""
    cores = [cut.core for cut in cuts]
    while (missing := _core.cut_apply_layers(cores))[1]:
        cuts[missing[0]].pool.grow(missing[1])
    for cut in cuts:
        cut.settle()


class LaterCut:
    """A cut on a device by parts in C, which nobody waits for: what it did is fetched later.

    budgets, lost, evicted: [rows, heads], rows: those that were cut, as of `fetch`.
    """

    def __init__(self, layer: CutLayer) -> None:
        self.layer = layer
        shape = (layer.core.rows, layer.heads)
        self._flags = np.zeros(shape[0], dtype=np.bool_)
        self._before, self._after = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        self.budgets, self.lost = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        self.rows: list[int] = []

    def run(self, totals: Ints, protect: Ints, score: ScoreArguments, heads: HeadArguments) -> None:
        """Starts it. totals, protect: as of `CoreCut`."""
        while missing := self.layer.core.cut(totals, protect, score, _heads(heads), None, None, None):
            self.layer.pool.grow(missing)

    def fetch(self) -> None:
        """Waits for this cut, and not for what came after it."""
        self.layer.core.figures(self._flags, self._before, self._after, self.budgets, self.lost)
        self.rows, self.evicted = np.flatnonzero(self._flags).tolist(), self._before - self._after


_BY_NO_SCORES = {"given": 3, "shares": 4}  # RA_HEADS_GIVEN, RA_HEADS_SHARES


def _heads(heads: HeadArguments) -> tuple[Any, ...]:
    if heads.heads in _BY_NO_SCORES:
        return (_BY_NO_SCORES[heads.heads], *heads[1:])
    return (HEADS[heads.heads], *heads[1:-1])


def read_only(arrays: Iterable[npt.NDArray[S]]) -> tuple[npt.NDArray[S], ...]:
    """Views that cannot be written through."""
    views = tuple(x.view() for x in arrays)
    for view in views:
        view.flags.writeable = False
    return views
