from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("dynamickv")
@dataclass(frozen=True)
class DynamicKV(Method):
    """DynamicKV (arXiv 2412.14838) in a decode form: layer budgets by where the row's best scores are, at every cut.

    As published, in paper and code (DreamMr/DynamicKV at 8ab3c08d), it runs in the prefill alone: tokens that are
    decoded are only appended, layer budgets are settled once, and each query head keeps a list of its own. Here each
    cut scores all layers, and layers compete again for the whole budget; KV heads are shared by their query heads; the
    score is the window's attention as R-KV's code pools it (maximum over the group, mean over 8 queries, max-pool of
    7), where the paper sums over 8 queries and pools by mean or maximum. r_max = 10 and uniform heads are the paper's.
    """

    scorer: str = "importance"
    layers: str = "dynamic"
