from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register
from reasonalloc.policy.published import MAX_POOLED
from reasonalloc.policy.scorers import Scorer


@register("pyramidkv-published")
@dataclass(frozen=True)
class PyramidKVPublished(Method):
    """PyramidKV (arXiv 2406.02069) as in its code: SnapKV's published score, max-pooled over 7 tokens, and integer
    layer budgets, whose sum may be above the budget. The code cuts once, after the prompt; here every interval.
    """

    scorer: str | Scorer = MAX_POOLED
    layers: str = "pyramid-published"
