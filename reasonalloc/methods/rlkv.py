from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register
from reasonalloc.policy.gates import GateHeads, GateLayers
from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LayerAllocator


@register("rlkv")
@dataclass(frozen=True)
class RLKV(Method):
    """RLKV (arXiv 2510.08525): heads with low gates keep the first 16 tokens and the newest 64, the others all.

    Options: gates, the file (`reasonalloc rlkv train` writes one, the published ones are read as they are); sparsity,
    the share of heads that are compressed (0.4); recent (64). sinks and interval are keywords. Takes no budget.

    As in paper and code the prompt is attended to in full by every head and cut when it has ended, then local heads are
    cut at every step. Differs from the published code, knowingly: heads with equal gates are ordered by their place
    in the model, not by noise; the code feeds the last 50 tokens of a prompt one by one, which is left to the caller.
    """

    scorer: str = "recency"
    layers: str | LayerAllocator = field(default_factory=GateLayers)
    heads: str | HeadAllocator = field(default_factory=GateHeads)
    interval: int = 1
    sinks: int = 16
    gates: str = field(kw_only=True)

    files: ClassVar[tuple[str, ...]] = ("gates",)
    whole_prompts: ClassVar[bool] = True
