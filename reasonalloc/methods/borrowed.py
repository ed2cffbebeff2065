"""A method's own functions as parts, which other methods may borrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reasonalloc.methods.base import Method
from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LayerAllocator
from reasonalloc.policy.registry import Part
from reasonalloc.policy.scorers import Scorer
from reasonalloc.policy.view import HeadView, LayerView, Numbers, RowView, Settings
from reasonalloc.policy.wave import demand

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Borrowed(Part):
    method: Method
    config: Settings

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def title(self) -> str:
        return f"method {self.name!r}"


@dataclass(frozen=True)
class MethodScorer(_Borrowed, Scorer):
    """A method's `score`."""

    def score(self, view: HeadView) -> Numbers:
        return self.method.score(view)


@dataclass(frozen=True)
class MethodLayers(_Borrowed, LayerAllocator):
    """A method's `layer_totals`."""

    uses_wave: bool = False

    def totals(self, claims: npt.NDArray[np.float64], total: int, view: RowView) -> Numbers:
        return self.method.layer_totals(claims, total, view.heads, self.config)

    def demand(
        self, queries: torch.Tensor, keys: torch.Tensor, scale: float | None = None, softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> float:  # fmt: skip
        return demand(queries, keys, self.config.rho, scale, softcap, sinks)


@dataclass(frozen=True)
class MethodHeads(_Borrowed, HeadAllocator):
    """A method's `head_budgets`."""

    def shares(self, scores: Sequence[npt.NDArray[np.float32]], total: int, view: LayerView) -> Numbers:
        return self.method.head_budgets(list(scores), total, self.config)
