from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("snapkv")
@dataclass(frozen=True)
class SnapKV(Method):
    """SnapKV (arXiv 2404.14469) in its decode form: pooled attention of the newest window's queries, every interval."""

    scorer: str = "importance"
