"""Layer allocators: how the slots of a row are shared out over its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from reasonalloc import allocate
from reasonalloc.policy.registry import Part, Registry
from reasonalloc.policy.setting import flag, setting
from reasonalloc.policy.view import Numbers, RowView
from reasonalloc.policy.wave import demand

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LayerAllocator(Part):
    """Base of all layer allocators. One written in Python overrides `totals` and is named by `ra.register`.

    uses_wave: whether it follows the layers' demands. sets_total: its totals depend on the row and need not sum to
    what the budget says. sized: there is a budget; without one the totals are its own.
    """

    kind: ClassVar[str] = "layers"
    uses_wave = False
    sets_total = False
    sized: ClassVar[bool] = True

    def totals(self, claims: npt.NDArray[np.float64], total: int, view: RowView) -> Numbers:
        """Slots of each layer, whole numbers that sum to `total`, at least heads x window each.

        claims: [L] the layers' demands, all ones unless `uses_wave`. view: of a row that may be asked for again; before
        its first token, its tokens are 0.
        """
        raise NotImplementedError

    def demand(
        self, queries: torch.Tensor, keys: torch.Tensor, scale: float | None = None, softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> float:  # fmt: skip
        """A layer's demand where there is no profile: arguments as of `wave.demand`."""
        return demand(queries, keys, scale=scale, softcap=softcap, sinks=sinks)


LAYERS: Registry[LayerAllocator] = Registry("layers")

F = TypeVar("F", bound=Callable[..., Numbers])


def steady(totals: F) -> F:
    """Marks a `totals` that looks at neither row nor tokens of its view: it need not be asked again for one total."""
    totals.steady = True  # type: ignore[attr-defined]
    return totals


@LAYERS.enter("uniform")
@dataclass(frozen=True)
class UniformLayers(LayerAllocator):
    """Every layer the same."""

    @steady
    def totals(self, claims: npt.NDArray[np.float64], total: int, view: RowView) -> Numbers:
        return allocate.robustify(np.ones(len(claims)), total, floor=view.heads * view.window)


@LAYERS.enter("wave")
@dataclass(frozen=True)
class Wave(LayerAllocator):
    """ReasonAlloc's (arXiv 2606.11164): demand ** gamma, clipped to [lo, hi] times the mean.

    rho: attention mass that defines a layer's demand. spare_prompt: first every layer gets room for what is protected
    (a kept prompt) and the window, and the wave shares out the rest, as long as there is one; without it a layer of low
    demand may have less than its prompt takes, and then keeps nothing of the chain but the window.
    """

    gamma: float = setting(0.5, 0, 16)
    lo: float = setting(0.25, 0, 1)
    hi: float = setting(2.0, 1, 1e6)
    rho: float = setting(0.93, 0, 1)
    spare_prompt: bool = flag(False)

    uses_wave = True

    @steady
    def totals(self, claims: npt.NDArray[np.float64], total: int, view: RowView) -> Numbers:
        least = view.heads * view.window
        spared = view.heads * (view.protected + view.window) if self.spare_prompt else 0
        if spared and (rest := total - spared * len(claims)) >= 0:
            return spared + allocate.robustify(claims, rest, self.gamma, self.lo, self.hi)
        return allocate.robustify(claims, total, self.gamma, self.lo, self.hi, least)

    def demand(
        self, queries: torch.Tensor, keys: torch.Tensor, scale: float | None = None, softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> float:  # fmt: skip
        return demand(queries, keys, self.rho, scale, softcap, sinks)


@LAYERS.enter("pyramid")
@dataclass(frozen=True)
class Pyramid(LayerAllocator):
    """PyramidKV's (arXiv 2406.02069): falling linearly with depth, the last layer 1 / beta of the mean."""

    beta: float = setting(20.0, 1, 1e6)

    @steady
    def totals(self, claims: npt.NDArray[np.float64], total: int, view: RowView) -> Numbers:
        return allocate.pyramid(len(claims), total, self.beta, view.heads * view.window)
