from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("snapkv-published")
@dataclass(frozen=True)
class SnapKVPublished(Method):
    """SnapKV (arXiv 2404.14469) with the published score: causal softmax over all keys, mean-pooled over 5 tokens.

    The code cuts once, after the prompt, with window=32; here every interval. Options: pool, width.
    """

    scorer: str = "snapkv-published"
