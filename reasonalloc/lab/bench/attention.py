"""One decode step of attention against torch, and both against the read bandwidth of the same core."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from reasonalloc import _core
from reasonalloc.lab.bench.bandwidth import LEAST_READ, STREAMS, Buffer
from reasonalloc.lab.bench.machine import last_level_cache
from reasonalloc.lab.bench.reference import grouped_matmul, sdpa_grouped, sdpa_repeated
from reasonalloc.lab.bench.results import AttentionRow
from reasonalloc.lab.bench.timing import compared, take_turns
from reasonalloc.store.pages import DTYPES, PagePool

PEERS = {"SDPA grouped": sdpa_grouped, "SDPA repeated": sdpa_repeated, "grouped matmul": grouped_matmul}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
_LEAST_TIMED = 16 << 20  # bytes of keys and values that one timed sample reads at least
_MOST_CALLS = 64
BEYOND = 3  # times the last-level cache that copies fill together, so that each call reads from memory
_WITHIN = 2  # the last-level cache holds a case this many times over: other guests of the machine share it
MOST_BYTES = 5 << 30
_ROW_LIMIT_S = 20.0


@dataclass(frozen=True)
class Shape:
    """Heads of the layer whose attention is timed."""

    heads: int = 8
    group: int = 4
    head_dim: int = 128
    window: int = 8

    def bytes(self, dtype: torch.dtype, batch: int, n: int) -> int:
        """Keys and values that a step reads."""
        return 2 * batch * self.heads * n * self.head_dim * dtype.itemsize


class Case:
    """`copies` layers with the same contents in memory of their own, ours in pages and dense for torch."""

    def __init__(self, shape: Shape, dtype: torch.dtype, batch: int, n: int, copies: int) -> None:
        self.shape, self.dtype, self.batch, self.n = shape, dtype, batch, n
        generator = torch.Generator().manual_seed(2)
        sizes = (batch, shape.heads, n, shape.head_dim)
        keys, values = (torch.randn(sizes, generator=generator).to(dtype) for _ in range(2))
        self.query = torch.randn(batch, shape.heads * shape.group, 1, shape.head_dim, generator=generator).to(dtype)
        self.dense = [(keys, values)] + [(keys.clone(), values.clone()) for _ in range(copies - 1)]
        self.layers = [self._layer(keys, values) for _ in range(copies)]
        self.newest = keys[:, :, -1:].contiguous(), values[:, :, -1:].contiguous()
        self.out = torch.empty(batch, 1, shape.heads * shape.group, shape.head_dim, dtype=dtype)
        self.ours_next = self.dense_next = 0

    def _layer(self, keys: torch.Tensor, values: torch.Tensor) -> _core.Layer:
        shape = self.shape
        pool = PagePool(DTYPES[self.dtype], shape.head_dim)
        layer = _core.Layer(pool.core, self.batch, shape.heads, shape.heads * shape.group, shape.window)
        queries = self.query.expand(-1, -1, self.n - 1, -1)
        pool.step(layer, queries, keys[:, :, :-1], values[:, :, :-1], None, 1.0)
        pool.grow(self.batch * shape.heads)  # for the token that each step appends
        return layer

    def step(self, layer: _core.Layer) -> None:
        """What a decode step does: append the newest token and attend. It is taken back, so that n stays."""
        layer.step(self.query, *self.newest, self.out, self.shape.head_dim**-0.5)
        layer.crop(1)

    def check(self) -> float:
        """Largest difference from float64 attention; RuntimeError where it is too large, for ours or a peer."""
        keys, values = (x.double() for x in self.dense[0])
        want = sdpa_grouped(self.query.double(), keys, values)
        self.step(self.layers[-1])
        found = {"ours": self.out.transpose(1, 2)}
        found |= {name: function(self.query, *self.dense[-1]) for name, function in PEERS.items()}
        errors = {name: float((x.double() - want).abs().max()) for name, x in found.items()}
        allowed = TOLERANCE[self.dtype]
        for name, error in errors.items():
            if not error <= allowed:
                raise RuntimeError(
                    f"attention n={self.n} batch={self.batch} {self.dtype}: {name} is off by {error:.1e}"
                    f" (allowed {allowed:.0e}); not timed"
                )
        return errors["ours"]

    def time_ours(self, calls: int) -> float:
        return self._time(calls, warm=len(self.layers) == 1, one=self._next_ours)

    def time_dense(self, function: Callable[..., torch.Tensor], calls: int) -> float:
        return self._time(calls, warm=len(self.dense) == 1, one=partial(self._next_dense, function))

    def _next_ours(self) -> None:
        self.step(self.layers[self.ours_next])
        self.ours_next = (self.ours_next + 1) % len(self.layers)

    def _next_dense(self, function: Callable[..., torch.Tensor]) -> None:
        function(self.query, *self.dense[self.dense_next])
        self.dense_next = (self.dense_next + 1) % len(self.dense)

    @staticmethod
    def _time(calls: int, warm: bool, one: Callable[[], None]) -> float:
        """Seconds of a call. warm: an untimed call first brings the data into the cache."""
        if warm:
            one()
        start = time.perf_counter()
        for _ in range(calls):
            one()
        return (time.perf_counter() - start) / calls


def _reading(buffer: Buffer, size: int, calls: int, warm: bool, streamed: bool) -> float:
    """Seconds that reading `size` bytes takes. warm: from the cache, as `Case.time_ours`."""
    if warm:
        buffer.sweep(size)
        return buffer.time(size, calls, streamed)
    part = max(size, LEAST_READ)
    return buffer.time(part, max(calls * size // part, 1), streamed) * size / part


def _row(case: Case, size: int, place: str, buffer: Buffer, runs: int) -> AttentionRow:
    error = case.check()
    calls = min(max(math.ceil(_LEAST_TIMED / size), 1), _MOST_CALLS)
    contenders: dict[str, Callable[[], float]] = {"ours": partial(case.time_ours, calls)}
    for name, function in PEERS.items():
        contenders[name] = partial(case.time_dense, function, calls)
    for name, streamed in STREAMS.items():
        contenders[name] = partial(_reading, buffer, size, calls, place != "memory", streamed)
    result = compared(take_turns(contenders, runs, _ROW_LIMIT_S))
    share = min(result["ratio"].pop(name) for name in STREAMS)  # of the faster way of reading
    medians = result["median_s"]
    read_s = min(medians[name] for name in STREAMS)
    return {
        "dtype": str(case.dtype)[6:],
        "batch": case.batch,
        "n": case.n,
        "from": place,
        "bytes": size,
        "max_error": error,
        "roofline_gb_s": size / read_s / 1e9,
        "roofline_share": {"ours": share} | {name: read_s / medians[name] for name in PEERS},
        **result,
    }


def rows(
    shape: Shape, dtypes: Sequence[torch.dtype], batches: Sequence[int], sizes: Sequence[int], runs: int
) -> Iterator[AttentionRow]:
    """Every case from memory (copies that the last-level cache cannot hold, in turn) and, where it fits, from there.

    Cases whose copies, with the temporaries of repeated heads, would pass `MOST_BYTES` are left out.
    """
    cache = last_level_cache()
    large = Buffer(BEYOND * cache)
    for dtype in dtypes:
        for batch in batches:
            for n in sizes:
                size = shape.bytes(dtype, batch, n)
                copies = max(math.ceil(BEYOND * cache / size), 2)
                if 2 * copies * size + shape.group * size > MOST_BYTES:
                    continue
                yield _row(Case(shape, dtype, batch, n, copies), size, "memory", large, runs)
                if size * _WITHIN <= cache:
                    yield _row(Case(shape, dtype, batch, n, 1), size, "last-level cache", Buffer(size), runs)
