from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("reasonalloc-wave")
@dataclass(frozen=True)
class ReasonAllocWave(Method):
    """ReasonAlloc's layer wave alone: every head of a layer has the same budget."""

    scorer: str = "rkv"
    layers: str = "wave"
