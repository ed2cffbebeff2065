"""Which kernels a step and a cut of one layer are, and what each takes: by torch's profiler."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from gpu_layers import INTERVAL, ROUTED, Case, Layer, Shape, copies_for, cut, feeder
from gpu_timing import Clock

ROUNDS = 8


def kernels(shape: Shape, rows: int, n: int, dtype: torch.dtype, clock: Clock, scorer: str = "rkv") -> dict[str, Any]:
    """Microseconds of each kernel of a decode step over n slots a head, and of a cut from n + 128 to n, with a scorer
    and the statistics that it needs."""
    step = _step(shape, Case(rows, n), dtype, clock, scorer)
    layer = Layer(shape, [n + INTERVAL] * rows, dtype, clock, dense=False, scorer=scorer)
    feed = feeder(layer, dtype)
    cut(layer, ROUTED, n)  # the first one compares all keys
    feed()
    parts = _profiled(clock, lambda: cut(layer, ROUTED, n), feed)
    return {"rows": rows, "n": n, "scorer": scorer, "step": step, "cut": parts}


def _step(shape: Shape, case: Case, dtype: torch.dtype, clock: Clock, scorer: str) -> dict[str, float]:
    copies = copies_for(shape, case, dtype, clock)
    layers = [Layer(shape, case.lengths(), dtype, clock, dense=False, scorer=scorer) for _ in range(copies)]
    for layer in layers:
        layer.step()
        layer.prepare(ROUNDS + 1)
    return _profiled(clock, lambda: [layer.step() for layer in layers])


def _profiled(clock: Clock, call: Callable[[], Any], after: Callable[[], None] | None = None) -> dict[str, float]:
    """Mean microseconds of a launch of each kernel; empty without a GPU. after: not profiled, after each call."""
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS if clock.has_graphs else 0):
        clock.wait()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            call()
            clock.wait()
        if after is not None:
            after()
        for event in profiler.events() or ():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                found.setdefault(_short(event.name), []).append(event.device_time)
    return {name: round(sum(x) / len(x), 2) for name, x in found.items()}


def _short(name: str) -> str:
    """Of a kernel, without its arguments' types."""
    plain = re.sub(r"^void |\(anonymous namespace\)::|\([^()]*\)$", "", name)
    return re.sub(r"\((?:ra_)?\w+\)(\d+)", r"\1", plain)
