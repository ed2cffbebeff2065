"""Cutting layers to their budgets: in C where the method's parts are, with Python parts where it has some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc.allocate import HEADS
from reasonalloc.config import Config
from reasonalloc.hf.layer import RaggedLayer
from reasonalloc.methods import HeadView, Method
from reasonalloc.policy.budgets import Budgets, checked_shares
from reasonalloc.policy.smoothing import Smoother
from reasonalloc.store.pages import PagePool
from reasonalloc.trace.recorder import Recorder

Floats = npt.NDArray[np.float32]


class Cutter:
    """Scores, routes and evicts; keeps what it did of each row, layer and head.

    prompt: [rows] tokens of each row's prompt. totals_now: [rows, layers]. budgets_now: [rows, layers, heads] of the
    last cut, -1 before. recorder: is told of every cut, if there is one.
    """

    def __init__(
        self,
        layers: Sequence[RaggedLayer],
        config: Config,
        method: Method,
        budgets: Budgets,
        recorder: Recorder | None = None,
    ) -> None:
        self.config, self.method, self.budgets, self.recorder = config, method, budgets, recorder
        self.smoother = Smoother(config.smoothing) if config.smoothing else None
        # Scores come up from C only where something in Python wants them.
        self.in_python = (
            recorder is not None or self.smoother is not None or method.scores_in_python or method.routes_in_python
        )
        rows, self.heads = len(budgets.demand), budgets.heads
        self.prompt = np.zeros(rows, dtype=np.int64)
        self.budgets_now = np.full((rows, len(layers), self.heads), -1, dtype=np.int64)
        self.totals_now = np.zeros((rows, len(layers)), dtype=np.int64)
        if not method.unlimited:
            self.totals_now[:] = [budgets.totals(row, 0) for row in range(rows)]
        self.evicted = 0
        self._lost, self._lost_count, self._flag = 0.0, 0, False
        self._route = (HEADS[method.heads], config.gamma, config.lo, config.hi, config.mu, config.safeguard)

    def _score_config(self, layer: RaggedLayer) -> tuple[Any, ...]:
        c = self.config
        return (self.method.scorer, c.alpha, c.threshold, c.kernel, c.seed * 1_000_003 + layer.index)

    def cut(self, layers: Sequence[RaggedLayer], pool: PagePool) -> None:
        """Cuts every row of these layers that is over its total."""
        protect = np.maximum(self.prompt if self.method.keep_prompt else 0, self.method.sinks).astype(np.int64)
        protect = np.broadcast_to(protect, len(self.prompt)).copy()
        for layer in layers:
            core = layer.held
            totals = self._totals(layer)
            self.totals_now[:, layer.order] = totals
            before = np.zeros((core.rows, layer.heads), dtype=np.int64)
            core.slots(before)
            if (before.sum(1) <= totals).all():
                continue
            lost = np.zeros((core.rows, layer.heads))
            cut = np.zeros(core.rows, dtype=np.bool_)
            budgets = np.zeros((core.rows, layer.heads), dtype=np.int64)
            if self.in_python:
                for row in np.flatnonzero(before.sum(1) > totals):
                    self._cut_row(
                        layer, int(row), int(totals[row]), int(protect[row]), before[row], budgets, lost, pool
                    )
                    cut[row] = True
            else:
                arguments = (totals, protect, self._score_config(layer), self._route, budgets, lost, cut)
                while missing := core.cut(*arguments):
                    pool.grow(missing)
            self._record(layer, before, budgets, lost, cut)

    def _totals(self, layer: RaggedLayer) -> npt.NDArray[np.int64]:
        """[rows] slots that a layer may keep now."""
        seen = [layer.held.tokens(row) for row in range(layer.held.rows)]
        return np.array([self.budgets.totals(row, n)[layer.order] for row, n in enumerate(seen)], dtype=np.int64)

    def _record(self, layer: RaggedLayer, before: Any, budgets: Any, lost: Any, cut: Any) -> None:
        after = np.zeros_like(before)
        layer.held.slots(after)
        self.evicted += int((before - after).sum())
        self.budgets_now[cut, layer.order] = budgets[cut]
        went = (before > after) & cut[:, None]
        self._lost += float(lost[went].sum())
        self._lost_count += int(went.sum())
        self._flag |= bool(cut.any())

    def _cut_row(
        self,
        layer: RaggedLayer,
        row: int,
        total: int,
        protect: int,
        slots: Any,
        budgets: Any,
        lost: Any,
        pool: PagePool,
    ) -> None:
        scores = self._scores(layer, row, np.maximum(slots - self.config.window, 0))
        if self.smoother is not None:
            scores = [self._smooth(layer, row, h, x) for h, x in enumerate(scores)]
        shares = self._shares(layer, row, scores, total, protect)
        what = f"head budgets of method {self.config.method!r}"
        budgets[row] = checked_shares(what, shares, layer.heads, self.config.window, total)
        self._evict(layer, row, scores, protect, budgets, lost, pool)
        if self.recorder is not None:
            self.recorder.note(layer, row, scores, budgets[row], lost[row])

    @staticmethod
    def _begin(layer: RaggedLayer, row: int, score: tuple[Any, ...] | None) -> None:
        """Begins a cut of one row."""
        core = layer.held
        totals = np.full(core.rows, -1)
        totals[row] = 0
        core.cut_score(totals, score, np.zeros(core.rows, np.bool_))

    @staticmethod
    def _evict(
        layer: RaggedLayer, row: int, scores: list[Floats], protect: int, budgets: Any, lost: Any, pool: PagePool
    ) -> None:
        core = layer.held
        core.cut_set_scores(row, np.concatenate(scores))
        core.cut_choose(np.full(core.rows, protect), budgets, lost)
        while missing := core.cut_apply():
            pool.grow(missing)

    def _scores(self, layer: RaggedLayer, row: int, older: npt.NDArray[np.int64]) -> list[Floats]:
        """Of each head's older tokens. older: [H] how many those are."""
        self._begin(layer, row, None if self.method.scores_in_python else self._score_config(layer))
        if self.method.scores_in_python:
            return [self._python_scores(layer, row, h, int(older[h])) for h in range(layer.heads)]
        flat = np.empty(int(older.sum()), dtype=np.float32)
        layer.held.cut_scores(row, flat)
        return np.split(flat, np.cumsum(older)[:-1])

    def _smooth(self, layer: RaggedLayer, row: int, head: int, scores: Floats) -> Floats:
        positions = np.frombuffer(layer.held.positions(row, head), np.int32)[: len(scores)]
        return self.smoother.smooth(row, layer.order, head, positions, scores) if self.smoother else scores

    def _shares(self, layer: RaggedLayer, row: int, scores: list[Floats], total: int, protect: int) -> Any:
        """Budgets of a layer's heads that sum to `total`. As in C, what all heads evict last is not routed."""
        base = 0 if self.method.routes_in_python else self._spared(layer, row, scores, total, protect)
        rest = self.method.head_budgets([x[base:] for x in scores], total - base * layer.heads, self.config)
        return rest + base if base else rest

    def _spared(self, layer: RaggedLayer, row: int, scores: list[Floats], total: int, protect: int) -> int:
        held = [
            int(np.searchsorted(np.frombuffer(layer.held.positions(row, h), np.int32)[: len(x)], protect))
            for h, x in enumerate(scores)
        ]
        return max(0, min(total // layer.heads - self.config.window, *held))

    def _python_scores(self, layer: RaggedLayer, row: int, head: int, older: int) -> Floats:
        view = HeadView(
            layer.held,
            layer.head_dim,
            layer.query_heads // layer.heads,
            layer.index,
            row,
            head,
            int(self.prompt[row]),
            self.config,
        )
        result = self.method.score(view)
        if isinstance(result, torch.Tensor):
            result = result.detach().float().cpu().numpy()
        scores = np.ascontiguousarray(result, dtype=np.float32)
        if scores.shape not in ((older,), (len(view.positions),)):
            raise ValueError(
                f"scores of method {self.config.method!r} must have shape [{len(view.positions)}] or, without the"
                f" window, [{older}], got {list(scores.shape)}"
            )
        scores = scores[:older]
        if not np.isfinite(scores).all():
            raise ValueError(
                f"scores of method {self.config.method!r} hold NaN or infinity (layer {layer.index}, head {head})"
            )
        return np.ascontiguousarray(scores)

    def take_flag(self) -> bool:
        """Whether anything was cut since the last call."""
        flag, self._flag = self._flag, False
        return flag

    @property
    def lost_mass(self) -> float:
        return self._lost / self._lost_count if self._lost_count else 0.0

    def budget_lists(self) -> list[Any]:
        if self.method.unlimited:
            return [[[-1] * self.heads] * self.budgets.layers] * len(self.budgets_now)
        now = self.budgets_now.copy()
        for row, i in np.argwhere((now < 0).all(-1)):
            total = self.totals_now[row, i]
            now[row, i] = total // self.heads + (np.arange(self.heads) < total % self.heads)
        return now.tolist()

    def forget_prompt_beyond(self, seen: int) -> None:
        """After a crop a prompt is at most what is left of the row."""
        self.prompt = np.minimum(self.prompt, seen)
        if self.smoother is not None:
            self.smoother.forget_from(seen)

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        self.prompt, self.budgets_now = self.prompt[source], self.budgets_now[source]
        self.totals_now = self.totals_now[source]
        self.budgets.move_rows(source)
        if self.smoother is not None:
            self.smoother.move_rows(source)
        if self.recorder is not None:
            self.recorder.move_rows(source)
