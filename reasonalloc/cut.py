"""Cutting layers to their budgets: in C where the method's parts are, with Python parts where it has some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc.allocate import HEADS
from reasonalloc.budget import Budgets, checked_shares
from reasonalloc.config import Config
from reasonalloc.layer import RaggedLayer
from reasonalloc.methods import HeadView, Method
from reasonalloc.pages import PagePool
from reasonalloc.score import SCORERS

Floats = npt.NDArray[np.float32]


class Cutter:
    """Scores, routes and evicts; keeps what it did of each row, layer and head.

    prompt: [rows] tokens of each row's prompt. totals_now: [rows, layers]. budgets_now: [rows, layers, heads] of the
    last cut, -1 before.
    """

    def __init__(self, layers: Sequence[RaggedLayer], config: Config, method: Method, budgets: Budgets) -> None:
        self.config, self.method, self.budgets = config, method, budgets
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
        return (SCORERS[self.method.scorer], c.alpha, c.threshold, c.kernel, c.seed * 1_000_003 + layer.index)

    def cut(self, layers: Sequence[RaggedLayer], pool: PagePool) -> None:
        """Cuts every row of these layers that is over its total."""
        protect = np.maximum(self.prompt if self.method.keep_prompt else 0, self.method.sinks).astype(np.int64)
        protect = np.broadcast_to(protect, len(self.prompt)).copy()
        for layer in layers:
            core = layer.held
            totals = np.array(
                [self.budgets.totals(row, core.seen(row))[layer.order] for row in range(core.rows)], dtype=np.int64
            )
            self.totals_now[:, layer.order] = totals
            before = np.zeros((core.rows, layer.heads), dtype=np.int64)
            core.slots(before)
            if (before.sum(1) <= totals).all():
                continue
            lost = np.zeros((core.rows, layer.heads))
            cut = np.zeros(core.rows, dtype=np.bool_)
            budgets = np.zeros((core.rows, layer.heads), dtype=np.int64)
            if self.method.scores_in_python or self.method.routes_in_python:
                for row in np.flatnonzero(before.sum(1) > totals):
                    self._cut_row(
                        layer, int(row), int(totals[row]), int(protect[row]), before[row], budgets, lost, pool
                    )
                    cut[row] = True
            else:
                arguments = (totals, protect, self._score_config(layer), self._route, budgets, lost, cut)
                while missing := core.compress(*arguments):
                    pool.grow(missing)
            self._record(layer, before, budgets, lost, cut)

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
        core, window = layer.held, self.config.window
        older = np.maximum(slots - window, 0)
        scores: list[Floats]
        if self.method.scores_in_python:
            scores = [self._python_scores(layer, row, h, int(older[h])) for h in range(layer.heads)]
        else:
            flat = np.empty(int(older.sum()), dtype=np.float32)
            core.score(row, self._score_config(layer), flat)
            scores = np.split(flat, np.cumsum(older)[:-1])
        shares = self.method.head_budgets(scores, total, self.config)
        what = f"head budgets of method {self.config.method!r}"
        budgets[row] = checked_shares(what, shares, layer.heads, window, total)
        while missing := core.evict(row, budgets[row], np.concatenate(scores), protect, lost[row]):
            pool.grow(missing)

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

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        self.prompt, self.budgets_now = self.prompt[source], self.budgets_now[source]
        self.totals_now = self.totals_now[source]
        self.budgets.move_rows(source)
