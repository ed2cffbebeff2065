from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("reasonalloc-route")
@dataclass(frozen=True)
class ReasonAllocRoute(Method):
    """ReasonAlloc's head routing alone: every layer has the same total. The score is centred as `reasonalloc`'s."""

    scorer: str = "rkv-centred"
    heads: str = "route"
