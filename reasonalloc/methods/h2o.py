from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("h2o")
@dataclass(frozen=True)
class H2O(Method):
    """H2O (arXiv 2306.14048): half the budget for the tokens with most accumulated attention, half for the newest ones.

    The paper evicts a token at every step: interval=1. The default interval is that of the other methods, so that the
    cache takes the same bytes as theirs.
    """

    scorer: str = "h2o"
