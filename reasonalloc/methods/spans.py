from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("spans")
@dataclass(frozen=True)
class Spans(Method):
    """Whole spans of 16 tokens by R-KV's score (arXiv 2505.24133), the mean over their tokens; no paper's.

    Asks what SkipKV (arXiv 2512.07993) makes one ask, whether tokens of one thought should go together; it is not
    SkipKV, which finds sentences by token ids and compares their hidden states. Options of the scorer: span, pool.
    """

    scorer: str = "spans"
