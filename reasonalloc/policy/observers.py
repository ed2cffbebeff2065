"""What a cut shows to those who look on: the recorder of traces, or a function of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class CutView:
    """One row of one layer at a cut. Arrays are read-only and lent for the time of the call: copy what is to stay.

    layer: its number in the model; order: among the layers that have a budget. row: in the batch, as it is now.
    tokens: that the row has been given. For each of the H heads:
        positions: those of its slots before the cut, ascending, 0 = the row's first token;
        scores: of the first len(scores) of them, the tokens before the window; higher stays;
        budgets: [H] slots that it may keep;
        kept: positions of the slots that stay;
        lost: [H] attention mass of the newest query on what goes, 0 to 1;
        cold: with recall, those of the positions that were evicted before and are scored again: in `kept` they stay,
        else they go once more; () without recall.
    """

    layer: int
    order: int
    row: int
    tokens: int
    positions: tuple[Positions, ...]
    scores: tuple[npt.NDArray[np.float32], ...]
    budgets: npt.NDArray[np.int64]
    kept: tuple[Positions, ...]
    lost: npt.NDArray[np.float64]
    cold: tuple[Positions, ...] = ()

    @cached_property
    def evicted(self) -> tuple[Positions, ...]:
        """Positions of the slots that go, but for those that were cold."""
        gone = tuple(np.setdiff1d(p, k, assume_unique=True) for p, k in zip(self.positions, self.kept, strict=True))
        if not self.cold:
            return gone
        return tuple(np.setdiff1d(p, c, assume_unique=True) for p, c in zip(gone, self.cold, strict=True))

    @cached_property
    def recalled(self) -> tuple[Positions, ...]:
        """Positions that were cold and stay."""
        return tuple(np.intersect1d(c, k, assume_unique=True) for c, k in zip(self.cold, self.kept, strict=False))


class CutObserver(Protocol):
    """Called once for each row of each layer that is cut. What it raises stops the forward pass."""

    def __call__(self, cut: CutView, /) -> object: ...


@runtime_checkable
class RowObserver(Protocol):
    """An observer that keeps something of each row."""

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        """Row i becomes row source[i]."""
