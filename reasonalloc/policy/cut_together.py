"""The cut in two phases: all layers are scored before one is cut."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import numpy.typing as npt

from reasonalloc.policy.budgets import checked_shares
from reasonalloc.policy.core_cut import (
    CoreCut,
    CutLayer,
    apply_all,
    layer_totals,
    read_only,
    row_tokens,
    slots_of,
)
from reasonalloc.policy.cut import Cutter, as_floats
from reasonalloc.policy.layers_by_scores import Dynamic, LayersByScores
from reasonalloc.policy.view import LayerScores, RowView

Ints = npt.NDArray[np.int64]


class CutTogether(Cutter):
    """Cuts all layers of a row together, for parts that see the scores of all of them.

    Phases: score every layer; let the scorer put others in their place (`across`); set the layers' totals; then of each
    layer share out among its heads, choose, show; and evict. Until the last one an error leaves all layers, and what is
    remembered of earlier scores, as they were. On a device each cut is waited for.
    """

    def _cut(self, layers: Sequence[CutLayer], due: npt.NDArray[np.bool_]) -> None:
        totals = self.budgets.of_rows(row_tokens(layers[0]))
        by_scores = isinstance(self.policy.layers, LayersByScores)
        slots = np.stack([slots_of(layer).sum(1) for layer in layers], 1)
        over = due & (slots.sum(1) > totals.sum(1) if by_scores else (slots > totals).any(1))
        if not over.any():
            self.totals_now[due] = totals[due]
            return
        protect, remembered = self._protect, deepcopy(self.smoother)
        windows = np.where(over, layers[0].heads * self.policy.schedule.window, -1)  # all that can be scored is
        cuts: list[CoreCut] = []
        try:
            for layer in layers:
                cuts.append(CoreCut(layer, self.policy.schedule.window, windows, protect, self.recalling))
            self._score_all(cuts, over)
            if by_scores:
                totals = np.where(over[:, None], self._layer_totals(cuts, over, totals.sum(1), protect), totals)
            self._choose_all(cuts, totals)
            apply_all([cut for cut in cuts if cut.pending])
        except BaseException:
            self.smoother = remembered
            raise
        finally:
            for cut in cuts:
                cut.abandon()
        self.totals_now[due] = totals[due]
        for cut in cuts:
            self._record(cut, cut.layer)
        if by_scores:  # a layer that got all that it holds was not cut
            slots = np.stack([cut.slots.sum(1) for cut in cuts], 1)
            whole = over[:, None] & (slots <= totals)
            for row, i in np.argwhere(whole):
                self.budgets_now[row, i] = cuts[i].slots[row]
        self._flag = True

    def _score_all(self, cuts: Sequence[CoreCut], over: npt.NDArray[np.bool_]) -> None:
        for cut in cuts:
            self._score(cut, cut.layer)
        if self.policy.scorer.sees_layers:
            for row in np.flatnonzero(over):
                self._replace(cuts, int(row))
        for cut in cuts:
            self._smooth(cut, cut.layer)

    def _row_view(self, cut: CoreCut, row: int) -> RowView:
        protected = int(self._protect[row])
        return RowView(row, cut.tokens(row), cut.layer.heads, self.policy.schedule.window, protected=protected)

    def _layer_scores(self, cuts: Sequence[CoreCut], row: int) -> list[LayerScores]:
        found = []
        for cut in cuts:
            none = [np.zeros(0, np.float32)] * cut.layer.heads  # it holds no more than its windows
            scores = cut.scores(row) if row in cut.rows else none
            found.append(LayerScores(cut.layer.index, cut.layer.order, cut.positions(row), read_only(scores)))
        return found

    def _replace(self, cuts: Sequence[CoreCut], row: int) -> None:
        """By what the scorer makes of the scores of all layers."""
        layers, scorer = self._layer_scores(cuts, row), self.policy.scorer
        result = list(scorer.across(layers, self._row_view(cuts[0], row)))
        if len(result) != len(layers):
            raise ValueError(
                f"scores of {scorer.title} across layers must be of {len(layers)} layers, got {len(result)}"
            )
        for cut, layer, changed in zip(cuts, layers, result, strict=True):
            scores = [as_floats(f"scores of {scorer.title} across layers", x) for x in changed]
            wanted, got = [x.shape for x in layer.scores], [x.shape for x in scores]
            if got != wanted or not all(np.isfinite(x).all() for x in scores):
                raise ValueError(
                    f"scores of {scorer.title} across layers must be finite and, in layer {layer.layer}, of the shapes"
                    f" {[list(x) for x in wanted]}, got {[list(x) for x in got]}"
                )
            if row in cut.rows:
                cut.set_scores(row, scores)

    def _layer_totals(self, cuts: Sequence[CoreCut], over: npt.NDArray[np.bool_], totals: Ints, protect: Ints) -> Ints:
        """[rows, layers] of the rows that are over, by their scores. totals: [rows] of all layers together."""
        allocator = self.policy.layers
        if isinstance(allocator, Dynamic) and not allocator.in_python:
            return layer_totals(cuts, np.where(over, totals, -1), protect, allocator.r_max)
        found = np.full((len(over), len(cuts)), -1, dtype=np.int64)
        window, what = self.policy.schedule.window, f"layer totals of {allocator.title}"
        for row in np.flatnonzero(over):
            total, view = int(totals[row]), self._row_view(cuts[0], int(row))
            if isinstance(allocator, LayersByScores):
                shares = allocator.shares(self._layer_scores(cuts, int(row)), total, view)
                found[row] = checked_shares(what, shares, len(cuts), view.heads * window, total)
        return found

    def _choose_all(self, cuts: Sequence[CoreCut], totals: Ints) -> None:
        for i, cut in enumerate(cuts):
            cut.narrow(np.ascontiguousarray(totals[:, i]))
            if cut.rows:
                self._allocate(cut, cut.layer)
                cut.choose()
        for cut in cuts if self.observers else ():
            for row in cut.rows:
                self._show(cut, cut.layer, row)
