"""Calls captured as CUDA graphs, by key."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Protocol, TypeVar

import torch

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Graph(Protocol):
    """A captured call."""

    def replay(self) -> None: ...


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one for captures on a device: torch's own lies on whichever device was current at its first capture, and
    memory of a pool of graphs serves one stream alone."""
    return torch.cuda.Stream(device)


def capture(call: Callable[[], T], pool: Any, device: torch.device) -> tuple[Graph, T]:
    """The graph of what a call puts on a GPU, and what it returned, which each replay writes anew."""
    graph = torch.cuda.CUDAGraph()
    collects = gc.isenabled()
    gc.disable()  # a cache that goes amid a capture waits and gives memory back, which would end the capture
    try:
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, stream=_stream(device)):
            result = call()
    finally:
        if collects:
            gc.enable()
    return graph, result


class Graphs(dict[K, tuple[Graph, T]]):
    """Graphs on one GPU, each with what its call returned; they share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._pool: Any = None

    def capture(self, key: K, call: Callable[[], T]) -> tuple[Graph, T]:
        """In place of the graph that the key has had."""
        self.pop(key, None)
        if not self:  # with its last graph torch gives up a pool, whose handle is of no use then
            self._pool = torch.cuda.graph_pool_handle()
        self[key] = capture(call, self._pool, self._device)
        return self[key]
