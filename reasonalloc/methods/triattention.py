from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("triattention")
@dataclass(frozen=True)
class TriAttention(Method):
    """TriAttention (arXiv 2604.04921): keys by what calibrated queries will find; the prompt stays.

    Every head keeps its own best tokens, the form that its code calls `per_layer_per_head`; the option `selection` has
    the others. The code cuts where a cache reaches the budget and every 128 tokens; here a budget is what remains after
    each cut, and the newest `window` tokens stay, of which the code has none.
    Needs Config(calibration=...), see `ra.calibrate`.
    """

    scorer: str = "triattention"
    keep_prompt: bool = True
