from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("raas")
@dataclass(frozen=True)
class RaaS(Method):
    """RaaS (arXiv 2502.11147): the prompt stays, and of the rest what was attended to last.

    The paper evicts pages of 16 tokens, one when a new one is needed; here single tokens, every interval.
    """

    scorer: str = "raas"
    keep_prompt: bool = True
