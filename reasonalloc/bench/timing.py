"""Paired timings: machines are noisy, so two things are timed in turn and their ratio is reported."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], runs: int) -> dict[str, Any]:
    """Times both in turn after one warm-up each; seconds of every run, medians, and the median of the paired ratios."""
    ours(), theirs()
    samples: list[tuple[float, float]] = []
    for _ in range(runs):
        times = []
        for function in (ours, theirs):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        samples.append((times[0], times[1]))
    return {
        "ours_s": statistics.median(a for a, _ in samples),
        "theirs_s": statistics.median(b for _, b in samples),
        "ratio": statistics.median(b / a for a, b in samples),
        "samples": samples,
    }


def pin_to_one_core() -> None:
    """One core for the whole process, so that both sides have the same."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
