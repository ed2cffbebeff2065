"""How close a compressed cache stays to the full one."""

from reasonalloc.lab.evaluate.fidelity import Fidelity, Point, evaluate_fidelity
from reasonalloc.lab.evaluate.forcing import forced_log_probs, full_log_probs
from reasonalloc.lab.evaluate.statistics import Measure

__all__ = ["Fidelity", "Measure", "Point", "evaluate_fidelity", "forced_log_probs", "full_log_probs"]
