from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("reasonalloc")
@dataclass(frozen=True)
class ReasonAlloc(Method):
    """ReasonAlloc (arXiv 2606.11164): R-KV's score, layer totals by the wave, head budgets by online routing.

    Differs from the paper's letter, knowingly: the score counts redundancy from its mean (`ra.score.rkv`), since heads
    are compared by it. scorer="rkv" is the letter.
    """

    scorer: str = "rkv-centred"
    layers: str = "wave"
    heads: str = "route"
