from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("vase")
@dataclass(frozen=True)
class VaSE(Method):
    """VaSE (arXiv 2606.03928): tokens with the largest value range stay, the rest is sampled by its attention.

    The published setting is window=interval=128: the newest tokens stay, and all their queries count. Options of the
    scorer: n_large, n_sink, width.
    """

    scorer: str = "vase"
