"""How close a compressed cache stays to the full one."""

from typing import TYPE_CHECKING

from reasonalloc.lab.evaluate.statistics import Measure
from reasonalloc.lazy import late

if TYPE_CHECKING:
    from reasonalloc.lab.evaluate.fidelity import Fidelity, Point, evaluate_fidelity
    from reasonalloc.lab.evaluate.forcing import forced_log_probs, full_log_probs

__all__ = ["Fidelity", "Measure", "Point", "evaluate_fidelity", "forced_log_probs", "full_log_probs"]

__getattr__ = late(
    __name__,
    {name: "reasonalloc.lab.evaluate.fidelity" for name in ("Fidelity", "Point", "evaluate_fidelity")}
    | {name: "reasonalloc.lab.evaluate.forcing" for name in ("forced_log_probs", "full_log_probs")},
)
