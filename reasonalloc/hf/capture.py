"""Calls captured as CUDA graphs, by key."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

import torch

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Graph(Protocol):
    """A captured call."""

    def replay(self) -> None: ...


def capture(call: Callable[[], T], pool: Any) -> tuple[Graph, T]:
    """The graph of what a call puts on the GPU, and what it returned, which each replay writes anew."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = call()
    return graph, result


class Graphs(dict[K, tuple[Graph, T]]):
    """Graphs, each with what its call returned; they share one pool of memory."""

    def __init__(self) -> None:
        super().__init__()
        self._pool: Any = None

    def capture(self, key: K, call: Callable[[], T]) -> tuple[Graph, T]:
        """In place of the graph that the key has had."""
        self.pop(key, None)
        if not self:  # with its last graph torch gives up a pool, whose handle is of no use then
            self._pool = torch.cuda.graph_pool_handle()
        self[key] = capture(call, self._pool)
        return self[key]
