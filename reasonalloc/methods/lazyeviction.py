from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("lazyeviction")
@dataclass(frozen=True)
class LazyEviction(Method):
    """LazyEviction (arXiv 2506.15969): every interval, tokens go that have been idle long for how often they recur.

    The paper's newest W tokens, which stay, are its interval: window=interval is the published setting. Options of the
    scorer: activation, relative, form ("paper" or "code"), prompt_statistics.
    """

    scorer: str = "lazy"
