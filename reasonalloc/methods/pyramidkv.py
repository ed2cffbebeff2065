from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("pyramidkv")
@dataclass(frozen=True)
class PyramidKV(Method):
    """PyramidKV (arXiv 2406.02069): SnapKV's score, layer totals falling linearly with depth (beta = 20)."""

    scorer: str = "importance"
    layers: str = "pyramid"
