"""Paired timings: machines are noisy, so two things are timed in turn and their ratio is reported."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

import reasonalloc
from reasonalloc import _core


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


def machine() -> dict[str, Any]:
    """What a figure must be read with."""
    name, flags = platform.processor(), ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    except OSError:
        pass  # not Linux
    return {
        "cpu": name,
        "flags": " ".join(f for f in flags.split() if f.startswith(("avx", "fma", "f16c", "amx"))),
        "cores": os.cpu_count(),
        "isa": _core.isa(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "reasonalloc": reasonalloc.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
