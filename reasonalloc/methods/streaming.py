from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("streaming")
@dataclass(frozen=True)
class Streaming(Method):
    """StreamingLLM (arXiv 2309.17453): the first 4 tokens (sinks) and the most recent ones, cut at every step."""

    scorer: str = "recency"
    interval: int = 1
    sinks: int = 4
