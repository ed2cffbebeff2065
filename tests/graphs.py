"""CUDA graphs for tests: of the emulation, or of a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from backends import Backend


class Graph:
    """What a call puts on a stream, to be replayed; what it needs must have been prepared."""

    def __init__(self, backend: Backend, call: Callable[[], None]) -> None:
        self.module = backend.module if backend.device == "cpu" else None
        if self.module is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                call()
            return
        self.module.capture_begin()
        try:
            call()
        finally:
            self._graph = self.module.capture_end()

    def replay(self) -> None:
        if self.module is None:
            self._graph.replay()
        else:
            self.module.replay(self._graph)

    def nodes(self) -> list[str] | None:
        """Names of what is in it; None on a GPU."""
        return None if self.module is None else self.module.nodes(self._graph)
