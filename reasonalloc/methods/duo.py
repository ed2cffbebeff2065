from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register
from reasonalloc.policy.gates import GateHeads, GateLayers
from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LayerAllocator


@register("duo")
@dataclass(frozen=True)
class Duo(Method):
    """DuoAttention (arXiv 2410.10819): as `rlkv`, with 64 first and 256 newest tokens for its streaming heads.

    Options: gates (`full_attention_heads.tsv` as published, or of `reasonalloc rlkv train --objective duo`), sparsity,
    recent. Differs from the published code as `rlkv` does.
    """

    scorer: str = "recency"
    layers: str | LayerAllocator = field(default_factory=partial(GateLayers, sinks=64, recent=256))
    heads: str | HeadAllocator = field(default_factory=partial(GateHeads, sinks=64, recent=256))
    interval: int = 1
    sinks: int = 64
    gates: str = field(kw_only=True)

    files: ClassVar[tuple[str, ...]] = ("gates",)
    whole_prompts: ClassVar[bool] = True
