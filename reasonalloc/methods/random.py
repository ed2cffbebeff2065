from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("random")
@dataclass(frozen=True)
class Random(Method):
    """Keeps the prompt and a seeded random choice of the rest: what any method must beat.

    A token's number depends on (seed, layer, head, position) alone, so a row of a batch is cut as it is alone.
    """

    scorer: str = "random"
    keep_prompt: bool = True
