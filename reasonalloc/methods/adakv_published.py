from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register
from reasonalloc.policy.published import MAX_POOLED
from reasonalloc.policy.scorers import Scorer


@register("adakv-published")
@dataclass(frozen=True)
class AdaKVPublished(Method):
    """Ada-KV (arXiv 2407.11550) as in its code: SnapKV's published score, max-pooled over 7 tokens, head budgets
    as of "adakv". The code cuts once, after the prompt, with window=32; here every interval.
    """

    scorer: str | Scorer = MAX_POOLED
    heads: str = "pooled"
