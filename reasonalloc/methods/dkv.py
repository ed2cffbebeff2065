from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("dkv")
@dataclass(frozen=True)
class DKV(Method):
    """VaSE's (arXiv 2606.03928) DKV: norms of keys and values in a random subspace; no queries."""

    scorer: str = "dkv"
