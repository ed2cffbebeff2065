"""Two threads against one: attention, and what the memory of the machine allows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from reasonalloc.lab.bench.attention import BEYOND, PEERS, Case, Shape
from reasonalloc.lab.bench.bandwidth import Buffer
from reasonalloc.lab.bench.machine import last_level_cache
from reasonalloc.lab.bench.timing import compared, take_turns


def measure(
    allowed: Sequence[int], shape: Shape, dtypes: Sequence[str], batches: Sequence[int], n: int, runs: int
) -> list[dict[str, Any]]:
    """A row for each dtype and batch: seconds of a step with one and two threads, alternating. In a fresh process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(allowed))
    cache = last_level_cache()
    buffers = [Buffer(BEYOND * cache) for _ in range(2)]
    result = []
    with ThreadPoolExecutor(2) as pool:
        for name in dtypes:
            for batch in batches:
                size = shape.bytes(getattr(torch, name), batch, n)
                case = Case(shape, getattr(torch, name), batch, n, max(BEYOND * cache // size + 1, 2))
                error = case.check()

                def read(threads: int, size: int = size) -> float:
                    start = time.perf_counter()
                    list(pool.map(lambda b: b.sweep(size // threads), buffers[:threads]))
                    return time.perf_counter() - start

                def step(threads: int, case: Case = case) -> float:
                    torch.set_num_threads(threads)
                    return case.time_ours(2)

                def peer(threads: int, case: Case = case) -> float:
                    torch.set_num_threads(threads)
                    return case.time_dense(PEERS["SDPA grouped"], 2)

                entry: dict[str, Any] = {"dtype": name, "batch": batch, "n": n, "max_error": error}
                for what, function in (("ours", step), ("SDPA grouped", peer), ("read", read)):
                    seconds = take_turns({"two": lambda f=function: f(2), "one": lambda f=function: f(1)}, runs)  # type: ignore[misc]
                    entry[what] = compared(seconds, own="two")
                result.append(entry)
    return result
