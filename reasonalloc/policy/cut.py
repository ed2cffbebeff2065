"""The cut: score, allocate, choose, evict; each by a part that is in C or in Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc.policy.budgets import Budgets, checked_shares
from reasonalloc.policy.core_cut import CoreCut, CutLayer, Floats, LaterCut, read_only, row_tokens
from reasonalloc.policy.heads import CoreHeads, HeadAllocator, HeadArguments
from reasonalloc.policy.observers import CutObserver, CutView, RowObserver
from reasonalloc.policy.policy import Policy
from reasonalloc.policy.scorers import CoreScorer, ScoreArguments, Scorer
from reasonalloc.policy.smoothing import Smoother
from reasonalloc.policy.view import HeadView, LayerView, Numbers


def as_floats(what: str, numbers: Numbers) -> Floats:
    """A copy of what Python code returned, which may write to its own again."""
    if isinstance(numbers, torch.Tensor):
        numbers = (numbers if numbers.is_complex() else numbers.float()).detach().cpu().numpy()
    try:
        if numbers is not None and not np.iscomplexobj(numbers):  # numpy takes the one for NaN, of the other a part
            return np.array(numbers, dtype=np.float32)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{what} must be numbers (tensor, array or list), got {str(numbers)[:80]!r}")


def _core_scorer(scorer: Scorer) -> TypeGuard[CoreScorer]:
    return isinstance(scorer, CoreScorer) and not scorer.in_python


def _core_heads(heads: HeadAllocator) -> TypeGuard[CoreHeads]:
    return isinstance(heads, CoreHeads) and not heads.in_python


_PartsInC: TypeAlias = tuple[ScoreArguments, HeadArguments]


class Cutter:
    """Cuts layers to their totals; keeps what it did of each row, layer and head.

    prompt: [rows] tokens of each row's prompt. totals_now: [rows, layers]. budgets_now: [rows, layers, heads] of the
    last cut, -1 before. evicted: slots in all; recalls: those that came back. lost_sum, lost_count: attention lost by
    cuts of heads, and their number. observers: are shown every cut. recalling: there is a cold tier. busy: a cut is
    under way.
    """

    def __init__(self, policy: Policy, budgets: Budgets, observers: Sequence[CutObserver] = ()) -> None:
        self.policy, self.budgets, self.observers = policy, budgets, tuple(observers)
        self.smoother = Smoother(policy.scorer.smoothing) if policy.scorer.smoothing else None
        rows = len(budgets.demand)
        self.prompt = np.zeros(rows, dtype=np.int64)
        self.budgets_now = np.full((rows, budgets.layers, budgets.heads), -1, dtype=np.int64)
        self.totals_now = np.zeros((rows, budgets.layers), dtype=np.int64)
        if not policy.unlimited:
            self.totals_now[:] = budgets.of_rows([0] * rows)
        self.evicted = self.recalls = 0
        self.recalling = policy.cold is not None
        self.lost_sum, self.lost_count, self._flag = 0.0, 0, False
        self._later: dict[int, LaterCut] = {}  # by the order of the layer: cuts whose figures are on a device still
        self.busy = self._counting = False

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Cuts in it were replayed from a graph, and are counted only."""
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def coming(
        self, layer: CutLayer, due: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """Totals and protected positions [rows] of a layer's cut after one more token of each row; None: no cut.

        The cut must be one call, without a part in Python.
        """
        totals = self.budgets.of_rows([n + 1 for n in row_tokens(layer)])[:, layer.order].copy()
        totals[~due] = -1
        most = np.zeros(len(totals), dtype=np.int64)
        layer.core.row_slots(most)
        return (totals, self._protect) if ((totals >= 0) & (most + layer.heads > totals)).any() else None

    def cut(self, layers: Sequence[CutLayer], due: npt.NDArray[np.bool_]) -> None:
        """Cuts every row of these layers that is due and over its total. due: [rows]."""
        self.busy = True
        try:
            self._cut(layers, due)
        finally:
            self.busy = False

    def _cut(self, layers: Sequence[CutLayer], due: npt.NDArray[np.bool_]) -> None:
        schedule, protect = self.policy.schedule, self._protect
        for layer in layers:
            totals = np.where(due, self._totals(layer), -1)
            np.copyto(self.totals_now[:, layer.order], totals, where=due)
            parts = self.parts_in_c(layer)
            if layer.pool.backend.capsule is not None and parts is not None:
                self._run_later(parts, layer, totals, protect)
                continue
            cut = CoreCut(layer, schedule.window, totals, protect, self.recalling)
            if cut.rows:
                self._run(parts, cut, layer)
                self._record(cut, layer)
                self._flag = True
            elif self.recalling:
                self.recalls += int(cut.recalled.sum())

    @property
    def prompt(self) -> npt.NDArray[np.int64]:
        """[rows] tokens of each row's prompt."""
        return self._prompt

    @prompt.setter
    def prompt(self, tokens: npt.NDArray[np.int64]) -> None:
        self._prompt = tokens
        self.budgets.protect = np.array([self.policy.schedule.protected(int(n)) for n in tokens], dtype=np.int64)
        slots = self.budgets.fixed
        if slots is not None and (text := self.policy.scorer.remark(int(self.budgets.protect.max(initial=0)), slots)):
            warnings.warn(text, stacklevel=2)

    @property
    def _protect(self) -> npt.NDArray[np.int64]:
        """[rows] positions below which tokens go last."""
        return self.budgets.protect

    def _totals(self, layer: CutLayer) -> npt.NDArray[np.int64]:
        """[rows] slots that a layer may keep now."""
        totals: npt.NDArray[np.int64] = self.budgets.of_rows(row_tokens(layer))[:, layer.order]
        return totals

    def parts_in_c(self, layer: CutLayer) -> _PartsInC | None:
        """What C needs to know where a cut is one call: nobody in Python has a part in it or looks on."""
        scorer, heads = self.policy.scorer, self.policy.heads
        if self.observers or self.smoother is not None or not (_core_scorer(scorer) and _core_heads(heads)):
            return None
        return scorer.arguments(layer.index), heads.arguments(layer.order)

    def _run_later(
        self, parts: _PartsInC, layer: CutLayer, totals: npt.NDArray[np.int64], protect: npt.NDArray[np.int64]
    ) -> None:
        self._fetch(layer.order)  # in any case: figures are summed up in the order of the cuts
        most = np.zeros(len(totals), dtype=np.int64)
        layer.core.row_slots(most)
        if not ((totals >= 0) & (most > totals)).any():
            return
        later = LaterCut(layer)
        if self._counting:
            layer.core.replayed_cut(totals)
        else:
            later.run(totals, protect, *parts)
        self._later[layer.order] = later
        self._flag = True  # as far as the host knows

    def _fetch(self, order: int) -> None:
        later = self._later.pop(order, None)
        if later is not None:
            later.fetch()
            self._record(later, later.layer)

    def fetch(self) -> None:
        """Waits for the figures of cuts on a device: those of this object are as of now then."""
        for order in list(self._later):
            self._fetch(order)

    def _run(self, parts: _PartsInC | None, cut: CoreCut, layer: CutLayer) -> None:
        if parts is not None:
            cut.run(*parts)
            return
        try:
            self._score(cut, layer)
            self._smooth(cut, layer)
            self._allocate(cut, layer)
            cut.choose()
            if self.observers:
                for row in cut.rows:
                    self._show(cut, layer, row)
            cut.apply()
        except BaseException:
            cut.abandon()
            raise

    # ---- the phases ----

    def _score(self, cut: CoreCut, layer: CutLayer) -> None:
        scorer = self.policy.scorer
        if _core_scorer(scorer):
            cut.score(scorer.arguments(layer.index))
        else:
            cut.score(None)
            for row in cut.rows:
                cut.set_scores(row, [self._head_scores(cut, layer, row, h) for h in range(layer.heads)])

    def _smooth(self, cut: CoreCut, layer: CutLayer) -> None:
        if self.smoother is not None:
            for row in cut.rows:
                positions, scores = cut.positions(row), cut.scores(row)
                smooth = (
                    self.smoother.smooth(row, layer.order, h, positions[h][: len(x)], x) for h, x in enumerate(scores)
                )
                cut.set_scores(row, list(smooth))

    def _head_scores(self, cut: CoreCut, layer: CutLayer, row: int, head: int) -> Floats:
        """Of the tokens before the window, by a scorer in Python."""
        scorer, older = self.policy.scorer, int(cut.older(row)[head])
        group, place = layer.query_heads // layer.heads, self._place(cut, layer, row)
        view = HeadView(cut.core, layer.head_dim, group, place, head, self.policy.settings)
        scores = as_floats(f"scores of {scorer.title}", scorer.score(view))
        slots = int(cut.slots[row, head])
        if scores.shape not in ((older,), (slots,)):
            raise ValueError(
                f"scores of {scorer.title} must have shape [{slots}] or, without the window, [{older}], got"
                f" {list(scores.shape)}"
            )
        scores = scores[:older]
        if not np.isfinite(scores).all():
            raise ValueError(f"scores of {scorer.title} hold NaN or infinity (layer {layer.index}, head {head})")
        return scores

    def _place(self, cut: CoreCut, layer: CutLayer, row: int) -> LayerView:
        window = self.policy.schedule.window
        protected = int(self._protect[row])
        return LayerView(
            row, cut.tokens(row), layer.heads, window, layer.index, int(self.prompt[row]), protected=protected
        )

    def _allocate(self, cut: CoreCut, layer: CutLayer) -> None:
        heads = self.policy.heads
        if _core_heads(heads):
            cut.allocate(heads.arguments(layer.order))
            return
        window, what = self.policy.schedule.window, f"head budgets of {heads.title}"
        for row in cut.rows:
            total = int(cut.totals[row])
            place = self._place(cut, layer, row)
            spared = tuple(int((x < place.protected).sum()) for x in cut.positions(row))
            shares = heads.shares(cut.scores(row), total, replace(place, protected_slots=spared))
            cut.budgets[row] = checked_shares(what, shares, layer.heads, window, total)

    def _show(self, cut: CoreCut, layer: CutLayer, row: int) -> None:
        """To the observers, before anything goes."""
        positions = cut.positions(row)
        kept = read_only(cut.kept(row, positions))
        budgets, lost = read_only([cut.budgets[row], cut.lost[row]])
        scores = read_only(cut.scores(row))
        cold = cut.cold_positions(row) if self.recalling else ()
        view = CutView(layer.index, layer.order, row, cut.tokens(row), positions, scores, budgets, kept, lost, cold)
        for observer in self.observers:
            observer(view)

    # ---- what was done ----

    def _record(self, cut: CoreCut | LaterCut, layer: CutLayer) -> None:
        # Every layer of every cut is here: where all rows and heads are meant, a list of them costs more than they do.
        all_rows = len(cut.rows) == len(cut.budgets)
        rows = slice(None) if all_rows else cut.rows
        self.budgets_now[rows, layer.order] = cut.budgets[rows]
        self.evicted += int(cut.evicted.sum())
        if self.recalling and isinstance(cut, CoreCut):
            self.recalls += int(cut.recalled.sum())
        heads = int(np.count_nonzero(cut.evicted))
        lost = cut.lost if heads == cut.lost.size else cut.lost[cut.evicted > 0]
        self.lost_sum += float(lost.sum())
        self.lost_count += heads

    def take_flag(self) -> bool:
        """Whether anything was cut since the last call."""
        flag, self._flag = self._flag, False
        return flag

    @property
    def lost_mass(self) -> float:
        """Attention of the newest query on what was evicted, the mean over the cuts of heads."""
        return self.lost_sum / self.lost_count if self.lost_count else 0.0

    def budget_lists(self) -> list[list[list[int]]]:
        """[rows][layers][heads] of the last cut; the even share before it, -1 for a head without a limit."""
        heads = self.budgets.heads
        if self.policy.unlimited:
            return [[[-1] * heads] * self.budgets.layers] * len(self.budgets_now)
        if self.policy.heads.limits is not None:
            return [self.policy.heads.limits.tolist()] * len(self.budgets_now)
        now = self.budgets_now.copy()
        for row, i in np.argwhere((now < 0).all(-1)):
            total = self.totals_now[row, i]
            now[row, i] = total // heads + (np.arange(heads) < total % heads)
        return now.tolist()

    def forget_beyond(self, tokens: npt.NDArray[np.int64]) -> None:
        """After a crop to so many tokens [rows]: a prompt is at most what is left of its row."""
        self.prompt = np.minimum(self.prompt, tokens)
        if self.smoother is not None:
            self.smoother.forget_from(tokens)

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        """Row i becomes row source[i]. The figures are fetched before."""
        self.prompt, self.budgets_now = self.prompt[source], self.budgets_now[source]
        self.totals_now = self.totals_now[source]
        self.budgets.move_rows(source)
        if self.smoother is not None:
            self.smoother.move_rows(source)
        for observer in self.observers:
            if isinstance(observer, RowObserver):
                observer.move_rows(source)
