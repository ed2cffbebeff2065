from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("adakv")
@dataclass(frozen=True)
class AdaKV(Method):
    """Ada-KV (arXiv 2407.11550): SnapKV's score, head budgets by a pooled top-k with a safeguard of 0.2."""

    scorer: str = "importance"
    heads: str = "pooled"
