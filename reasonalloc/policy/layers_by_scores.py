"""Layer allocators that see the scores of all layers before one is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reasonalloc import allocate
from reasonalloc.policy.layers import LAYERS, LayerAllocator, steady
from reasonalloc.policy.setting import setting
from reasonalloc.policy.view import LayerScores, Numbers, RowView


@dataclass(frozen=True)
class LayersByScores(LayerAllocator):
    """Base of layer allocators that share a row's slots out by its scores. One in Python overrides `shares` and is
    named by `ra.register`.

    The cut has two phases then: all layers are scored, then totals are set, then each layer is cut to its own. So
    layers are cut together after a pass's last layer, and a prompt, which all of them hold whole until then, only at
    its end. Only scores that mean the same in every layer, as probabilities do, compare: the importance scorer's, not
    R-KV's.
    """

    @steady
    def totals(self, claims: npt.NDArray[np.float64], total: int, view: RowView) -> Numbers:
        """Before the first cut: every layer the same."""
        return allocate.robustify(np.ones(len(claims)), total, floor=view.heads * view.window)

    def shares(self, layers: Sequence[LayerScores], total: int, view: RowView) -> Numbers:
        """Slots of each layer, whole numbers that sum to `total`, at least heads x window each.

        layers: all that have a budget, in the model's order. A layer keeps no more than it holds.
        """
        raise NotImplementedError

    @property
    def in_python(self) -> bool:
        """Whether `shares` is called; otherwise the C allocator of `Dynamic` runs."""
        return type(self).shares is not Dynamic.shares


@LAYERS.enter("dynamic")
@dataclass(frozen=True)
class Dynamic(LayersByScores):
    """DynamicKV's (arXiv 2412.14838, section 4) at each cut: a layer's claim is how many of the row's best scores, over
    all layers, it has; at most r_max times the mean and what it still holds (`allocate.route_layers`).

    r_max (one of Config's options): 10, as in the paper and in DreamMr/DynamicKV at 8ab3c08d. Paper and code do it
    once, during the prefill, after every fourth layer from the layers seen so far, and never give slots back; here all
    layers are known.
    """

    r_max: float = setting(10.0, 1, 1e6)

    def shares(self, layers: Sequence[LayerScores], total: int, view: RowView) -> Numbers:
        return allocate.route_layers([x.scores for x in layers], total, window=view.window, r_max=self.r_max)
