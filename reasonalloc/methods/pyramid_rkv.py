from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("pyramid-rkv")
@dataclass(frozen=True)
class PyramidRKV(Method):
    """R-KV's score with PyramidKV's layer totals: the baseline of ReasonAlloc's paper."""

    scorer: str = "rkv"
    layers: str = "pyramid"
