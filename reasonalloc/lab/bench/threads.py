"""Two threads against one: attention, and what the memory of the machine allows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from reasonalloc.lab.bench.attention import BEYOND, PEERS, Case, Shape
from reasonalloc.lab.bench.bandwidth import Buffer
from reasonalloc.lab.bench.machine import last_level_cache
from reasonalloc.lab.bench.results import ThreadsRow
from reasonalloc.lab.bench.timing import Compared, compared, take_turns


def measure(
    allowed: Sequence[int], shape: Shape, dtypes: Sequence[str], batches: Sequence[int], n: int, runs: int
) -> list[ThreadsRow]:
    """A row for each dtype and batch: seconds of a step with one and two threads, alternating. In a fresh process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(allowed))
    cache = last_level_cache()
    buffers = [Buffer(BEYOND * cache) for _ in range(2)]
    result: list[ThreadsRow] = []
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

                result.append(
                    {
                        "dtype": name,
                        "batch": batch,
                        "n": n,
                        "max_error": error,
                        "ours": _compared(step, runs),
                        "SDPA grouped": _compared(peer, runs),
                        "read": _compared(read, runs),
                    }
                )
    return result


def _compared(seconds_with: Callable[[int], float], runs: int) -> Compared:
    """One thread against two."""
    return compared(take_turns({"two": lambda: seconds_with(2), "one": lambda: seconds_with(1)}, runs), own="two")
