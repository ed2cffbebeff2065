"""Paired timings: machines are noisy, so contenders are timed in turn and the ratios of each round are reported."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypedDict

import torch

LEAST_ROUNDS = 3


class Compared(TypedDict):
    """Contenders by name. ratio: of each peer, the median of its paired ratios (above 1: ours is faster)."""

    seconds: dict[str, list[float]]
    median_s: dict[str, float]
    ratio: dict[str, float]


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def take_turns(
    contenders: Mapping[str, Callable[[], float]], rounds: int, limit_s: float | None = None
) -> dict[str, list[float]]:
    """Seconds that each contender says it took, in turn, `rounds` times after one round that is thrown away.

    A contender prepares what it must, times its own work and returns the seconds. limit_s: no new round once that much
    time has gone by, but for the first three.
    """
    for each in contenders.values():
        each()
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    for number in range(rounds):
        if limit_s is not None and number >= LEAST_ROUNDS and time.perf_counter() - start > limit_s:
            break
        for name, each in contenders.items():
            samples[name].append(each())
    return samples


def compared(seconds: Mapping[str, list[float]], own: str = "ours") -> Compared:
    """The samples with their medians and, for each peer, the median of its paired ratios to `own` (above 1: own is
    faster)."""
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds[own], samples, strict=True))
        for name, samples in seconds.items()
        if name != own
    }
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    return {"seconds": dict(seconds), "median_s": medians, "ratio": ratios}


def cores() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


@contextmanager
def one_core() -> Iterator[int]:
    """The whole process on one core with one torch thread, as before afterwards. Gives the core's number."""
    before, threads = cores(), torch.get_num_threads()
    core = max(before)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)
