from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("rkv")
@dataclass(frozen=True)
class RKV(Method):
    """R-KV (arXiv 2505.24133): importance minus redundancy, the same budget for every head.

    Differs from the published code, knowingly: tokens stay in order of age (the code stores them in order of score, so
    that "the last similar key" and the pooling run over a shuffled order from the second cut on), and each row of a
    batch is scored by its own keys.
    """

    scorer: str = "rkv"
