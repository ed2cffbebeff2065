"""Head allocators: how the slots of a layer are shared out over its KV heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from reasonalloc import allocate
from reasonalloc.policy.registry import Part, Registry
from reasonalloc.policy.setting import setting
from reasonalloc.policy.view import LayerView, Numbers
from reasonalloc.protocols import Model


class HeadArguments(NamedTuple):
    """What the C allocator of that name is given."""

    heads: str
    gamma: float = 1.0
    lo: float = 0.0
    hi: float = 1.0
    mu: float = 0.0
    safeguard: float = 0.0
    per_head: bytes = b""  # "given": int64, slots of each head, negative for a share of the rest; "shares": float64


@dataclass(frozen=True)
class HeadAllocator(Part):
    """Base of all head allocators. One written in Python overrides `shares` and is named by `ra.register`.

    limits: [layers with a budget, H] slots of each head where they are fixed, -1 for no limit; None elsewhere.
    """

    kind: ClassVar[str] = "heads"
    limits: ClassVar[npt.NDArray[np.int64] | None] = None

    @property
    def in_python(self) -> bool:
        """Whether `shares` is called; otherwise the C allocator of `arguments` runs."""
        return type(self).shares is not CoreHeads.shares

    def check(self, model: Model, layers: Sequence[int]) -> None:
        """Raises ValueError where it was measured on another model. layers: those with a budget."""

    def shares(self, scores: Sequence[npt.NDArray[np.float32]], total: int, view: LayerView) -> Numbers:
        """Slots of each head, whole numbers that sum to `total`, each at least the window.

        scores: of each head, those of its tokens before the window, oldest first.
        """
        raise NotImplementedError


class CoreHeads(HeadAllocator):
    """An allocator in C. What every head keeps of the prompt and the sinks is not shared out by it. core: its name."""

    core: ClassVar[str]

    def arguments(self, order: int = 0) -> HeadArguments:
        """order: of the layer, among those with a budget."""
        return HeadArguments(self.core)

    def shares(self, scores: Sequence[npt.NDArray[np.float32]], total: int, view: LayerView) -> Numbers:
        settings = self.arguments()._asdict()
        settings.pop("per_head")
        return allocate.route(scores, total, window=view.window, **settings)


HEADS: Registry[HeadAllocator] = Registry("heads")


@HEADS.enter("uniform")
@dataclass(frozen=True)
class UniformHeads(CoreHeads):
    """Every head the same."""

    core: ClassVar[str] = "uniform"


@HEADS.enter("route")
@dataclass(frozen=True)
class Route(CoreHeads):
    """ReasonAlloc's online routing (arXiv 2606.11164): a head's claim is how many of the layer's best scores it has.

    gamma, lo, hi: as of the wave. mu: what a head gets at least, as a share of the mean. head_gamma, head_lo, head_hi:
    the same three for heads alone, where they are not to be the wave's; None: as gamma, lo, hi.
    """

    gamma: float = setting(0.5, 0, 16)
    lo: float = setting(0.25, 0, 1)
    hi: float = setting(2.0, 1, 1e6)
    mu: float = setting(0.25, 0, 1)
    head_gamma: float | None = setting(None, 0, 16)
    head_lo: float | None = setting(None, 0, 1)
    head_hi: float | None = setting(None, 1, 1e6)

    core: ClassVar[str] = "route"

    def arguments(self, order: int = 0) -> HeadArguments:
        gamma = self.gamma if self.head_gamma is None else self.head_gamma
        lo = self.lo if self.head_lo is None else self.head_lo
        hi = self.hi if self.head_hi is None else self.head_hi
        return HeadArguments(self.core, gamma, lo, hi, self.mu)


@HEADS.enter("pooled")
@dataclass(frozen=True)
class Pooled(CoreHeads):
    """Ada-KV's (arXiv 2407.11550): the layer's best scores wherever they are; safeguard: the share dealt out evenly.

    This is the published code's mix, (1 - safeguard) x a head's share of the layer's best + safeguard x the even share,
    above the window. The code rounds each budget by itself, which may miss the total; here the largest remainders get
    what is left, and all scores that tie with the last of the best count.
    """

    safeguard: float = setting(0.2, 0, 1)

    core: ClassVar[str] = "pooled"

    def arguments(self, order: int = 0) -> HeadArguments:
        return HeadArguments(self.core, safeguard=self.safeguard)
