from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("vatp")
@dataclass(frozen=True)
class VATP(Method):
    """VATP (arXiv 2406.12335): attention times the l1 norm of the value; the first 20 tokens stay."""

    scorer: str = "vatp"
    sinks: int = 20
