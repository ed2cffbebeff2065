"""Which kernels a step and a cut of one layer are, and what each takes: by torch's profiler."""

from __future__ import annotations

from typing import Any

import torch
from gpu_layers import INTERVAL, ROUTED, Case, Layer, Shape, copies_for, cut, feeder
from gpu_timing import PROFILED, Clock, profiled


def kernels(shape: Shape, rows: int, n: int, dtype: torch.dtype, clock: Clock, scorer: str = "rkv") -> dict[str, Any]:
    """Microseconds of each kernel of a decode step over n slots a head, and of a cut from n + 128 to n, with a scorer
    and the statistics that it needs."""
    step = _step(shape, Case(rows, n), dtype, clock, scorer)
    layer = Layer(shape, [n + INTERVAL] * rows, dtype, clock, dense=False, scorer=scorer)
    feed = feeder(layer, dtype)
    cut(layer, ROUTED, n)  # the first one compares all keys
    feed()
    parts = profiled(clock, lambda: cut(layer, ROUTED, n), feed)
    return {"rows": rows, "n": n, "scorer": scorer, "step": step, "cut": parts}


def _step(shape: Shape, case: Case, dtype: torch.dtype, clock: Clock, scorer: str) -> dict[str, float]:
    copies = copies_for(shape, case, dtype, clock)
    layers = [Layer(shape, case.lengths(), dtype, clock, dense=False, scorer=scorer) for _ in range(copies)]
    for layer in layers:
        layer.step()
        layer.prepare(PROFILED + 1)
    return profiled(clock, lambda: [layer.step() for layer in layers])
