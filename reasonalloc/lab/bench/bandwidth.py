"""The roofline: how fast one core reads memory."""

from __future__ import annotations

import time

import numpy as np

from reasonalloc import _core

LEAST_READ = 8 << 20  # bytes: a shorter read from memory would time its start
STREAMS = {"read": False, "read in 8 streams": True}  # which of the two is faster differs from machine to machine


class Buffer:
    """Memory to read part by part, coming round again at its end."""

    def __init__(self, size: int) -> None:
        self.data = np.ones(max(size, 4096), dtype=np.uint8)
        self.next = 0

    def sweep(self, size: int, streamed: bool = False) -> int:
        """Reads the next `size` bytes with the widest loads; returns how many it was."""
        count = min(size, len(self.data))
        if self.next + count > len(self.data):
            self.next = 0
        _core.read_bandwidth_probe(self.data[self.next : self.next + count], streamed)
        self.next += count
        return count

    def time(self, size: int, parts: int, streamed: bool) -> float:
        """Seconds of reading `size` bytes, from `parts` such parts."""
        start = time.perf_counter()
        total = sum(self.sweep(size, streamed) for _ in range(parts))
        return (time.perf_counter() - start) / total * size
