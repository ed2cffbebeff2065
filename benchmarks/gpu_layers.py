"""One layer on a GPU: decode attention beside torch's and its peers', a cut beside R-KV's published form.

As many copies of a layer take turns as fill the last-level cache several times over: a model's layers do. What ours and
the peers compute is compared with float32 before it is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_peers import peer_steps
from gpu_timing import PROFILED, Clock, Samples, in_turn, profiled
from torch.nn.functional import scaled_dot_product_attention

from reasonalloc import _core
from reasonalloc.lab.bench.reference import rkv_published_form
from reasonalloc.store.backends import backend_for
from reasonalloc.store.pages import PagePool

WINDOW, INTERVAL = 8, 128
SCORE = ("rkv", 0.1, 0.5, 7, 0)
EVEN, ROUTED = (0, 0.5, 0.25, 2.0, 0.25, 0.2), (1, 0.5, 0.25, 2.0, 0.25, 0.2)


@dataclass(frozen=True)
class Shape:
    """Of a layer: Llama 3.1 8B's if not given."""

    kv_heads: int = 8
    group: int = 4
    head_dim: int = 128


@dataclass(frozen=True)
class Case:
    """rows of n tokens each, or, ragged, of n / 2 to 3 n / 2."""

    rows: int
    n: int
    ragged: bool = False

    def lengths(self) -> list[int]:
        random = np.random.default_rng(self.n)
        drawn = random.integers(self.n // 2, self.n * 3 // 2 + 1, self.rows) if self.ragged else [self.n] * self.rows
        return [int(n) for n in drawn]


class Layer:
    """A layer of ours and, where they are wanted, the same keys and values in one piece."""

    def __init__(
        self,
        shape: Shape,
        lengths: list[int],
        dtype: torch.dtype,
        clock: Clock,
        dense: bool = True,
        scorer: str = SCORE[0],
    ) -> None:
        self.shape, self.lengths, self.clock, self.scorer = shape, lengths, clock, scorer
        rows, heads, size = len(lengths), shape.kv_heads, shape.head_dim
        self.pool = PagePool(str(dtype).removeprefix("torch."), size, backend_for(clock.device, "model"))
        self.core = _core.Layer(self.pool.core, rows, heads, heads * shape.group, WINDOW, scorer, 2 * INTERVAL)
        self.keys = self.values = torch.zeros(0)
        most = max(lengths)
        if dense:
            self.keys, self.values = (clock.random(dtype, rows, heads, most + 1, size) for _ in range(2))
        self.query = clock.random(dtype, rows, heads * shape.group, 1, size)
        self.key, self.value = (clock.random(dtype, rows, heads, 1, size) for _ in range(2))
        self.out = torch.zeros(rows, 1, heads * shape.group, size, dtype=dtype, device=clock.device)
        for start in range(0, most, 2048):
            fresh = [min(max(n - start, 0), 2048) for n in lengths]
            width = max(fresh)
            begin = np.concatenate([[0], np.cumsum(fresh)]).astype(np.int64)
            index = np.concatenate([np.arange(n) for n in fresh]).astype(np.int64)
            drawn = clock.random(dtype, rows, heads * shape.group, width, size)
            both = (self.keys, self.values) if dense else (clock.random(dtype, rows, heads, most, size),) * 2
            key, value = (x[:, :, start : start + width] for x in both)
            self.pool.step(self.core, drawn, key, value, None, self.scale, None, begin, index)
        for row, n in enumerate(lengths if dense else []):  # the token that a step adds, behind the others
            self.keys[row, :, n], self.values[row, :, n] = self.key[row, :, 0], self.value[row, :, 0]
        columns = torch.arange(most + 1, device=clock.device)
        seen = columns <= torch.tensor(lengths, device=clock.device)[:, None]
        self.mask = None if bool(seen.all()) else seen[:, None, None]

    @property
    def scale(self) -> float:
        return float(self.shape.head_dim**-0.5)

    def step(self) -> None:
        while missing := self.core.step(self.query, self.key, self.value, self.out, self.scale):
            self.pool.grow(missing)

    def prepare(self, steps: int) -> None:
        while missing := self.core.prepare(steps):
            self.pool.grow(missing)

    def sdpa(self) -> torch.Tensor:
        keys, values = self.keys, self.values
        return scaled_dot_product_attention(self.query, keys, values, self.mask, scale=self.scale, enable_gqa=True)

    def error(self, out: torch.Tensor) -> float:
        """Largest difference of outputs [B, Hq, 1, D] from float32, over the largest output."""
        exact = scaled_dot_product_attention(
            self.query.float(), self.keys.float(), self.values.float(), self.mask, scale=self.scale, enable_gqa=True
        )
        return float((out.float() - exact).abs().max() / exact.abs().max())


def copies_for(shape: Shape, case: Case, dtype: torch.dtype, clock: Clock) -> int:
    each = 2 * sum(case.lengths()) * shape.kv_heads * shape.head_dim * dtype.itemsize
    return max(1, min(clock.most_copies, math.ceil(3 * clock.cache_bytes / each)))


def attention(shape: Shape, case: Case, dtype: torch.dtype, clock: Clock, rounds: int) -> dict[str, Any]:
    """A decode step of a layer: append and attention, beside the attention alone of the peers."""
    lengths, copies = case.lengths(), copies_for(shape, case, dtype, clock)
    layers = [Layer(shape, lengths, dtype, clock) for _ in range(copies)]
    first, errors = layers[0], {}
    first.step()
    errors["ours"] = first.error(first.out.transpose(1, 2))
    errors["SDPA"] = first.error(first.sdpa())
    limit = 2 * errors["SDPA"] + 4 * torch.finfo(dtype).eps
    if not errors["ours"] <= limit:
        raise RuntimeError(f"{case}: ours is {errors['ours']:.2e} from float32, allowed are {limit:.2e}")
    for layer in layers[1:]:
        layer.step()
    for layer in layers:  # no pages are added amid the timing
        layer.prepare(2 * rounds + 4 + PROFILED)
    peers: dict[str, Callable[[], Any]] = {"SDPA": lambda: [layer.sdpa() for layer in layers]}
    peers |= peer_steps(layers)
    eager = {"ours": lambda: [layer.step() for layer in layers], **peers}
    samples = in_turn(clock, eager, rounds, copies)
    kernels = {name: profiled(clock, call) for name, call in eager.items()}
    graphed: Samples = {}
    if clock.has_graphs:
        for layer in layers:
            layer.prepare(1)
        ours = clock.graph(eager["ours"])
        ours()  # what was captured counts as made
        for layer in layers:
            layer.prepare(rounds + 1)
        graphed = in_turn(clock, {"ours": ours, **{name: clock.graph(x) for name, x in peers.items()}}, rounds, copies)
        for layer in layers:
            layer.core.replayed(rounds + 1)
    read = 2 * sum(lengths) * shape.kv_heads * shape.head_dim * dtype.itemsize
    return {
        "rows": case.rows, "n": case.n, "ragged": case.ragged, "copies": copies, "bytes": read, "errors": errors,
        "seconds": samples, "graph_seconds": graphed, "kernels": kernels,
    }  # fmt: skip


def kept_as_published(layer: Layer, budget: int) -> float:
    """Share of the kept tokens that R-KV's published form, in float32, keeps too; each head is cut to the budget."""
    shape, (row, head) = layer.shape, (0, 0)
    n = layer.lengths[0]
    keys = np.empty((n, shape.head_dim), np.float32)
    layer.core.read(row, head, False, keys)
    count, held = layer.core.queries(row)
    queries = np.frombuffer(held, np.float32).reshape(-1, count, shape.head_dim).copy()
    cut(layer, EVEN, budget)
    mine = set(np.frombuffer(layer.core.positions(row, head), np.int32).tolist())
    scores = rkv_published_form(torch.from_numpy(queries)[: shape.group], torch.from_numpy(keys)[None])[0]
    best = set(scores.topk(budget - WINDOW).indices.tolist()) | set(range(n - WINDOW, n))
    return len(mine & best) / len(best)


def cut(layer: Layer, route: tuple[float, ...], budget: int) -> None:
    totals, score = np.full(len(layer.lengths), budget * layer.shape.kv_heads), (layer.scorer, *SCORE[1:])
    while missing := layer.core.cut(totals, np.zeros_like(totals), score, route, None, None, None):
        layer.pool.grow(missing)


def feeder(layer: Layer, dtype: torch.dtype) -> Callable[[], None]:
    """Gives each row the tokens between two cuts, without attention."""
    rows, shape = len(layer.lengths), layer.shape
    fresh = [layer.clock.random(dtype, rows, heads, INTERVAL, shape.head_dim)
             for heads in (shape.kv_heads * shape.group, shape.kv_heads, shape.kv_heads)]  # fmt: skip

    def feed() -> None:
        layer.pool.step(layer.core, *fresh, None, layer.scale)

    return feed


def compression(shape: Shape, rows: int, budget: int, dtype: torch.dtype, clock: Clock, rounds: int) -> dict[str, Any]:
    """A cut (score, route, evict) of one layer from budget + interval to budget, beside R-KV's published form: score,
    top-k, gather, of all rows in one batch."""
    n = budget + INTERVAL
    layer = Layer(shape, [n] * rows, dtype, clock, dense=False)
    agreement = kept_as_published(layer, budget)
    if agreement < 0.98:
        raise RuntimeError(f"ours keeps {agreement:.1%} of what the published form keeps, rows {rows}, budget {budget}")
    heads = rows * shape.kv_heads
    keys, values = (clock.random(dtype, heads, n, shape.head_dim) for _ in range(2))
    queries = clock.random(dtype, heads * shape.group, WINDOW, shape.head_dim)
    feed = feeder(layer, dtype)

    def published() -> None:
        best = rkv_published_form(queries, keys).topk(budget - WINDOW, dim=-1).indices
        index = best[..., None].expand(-1, -1, shape.head_dim)
        for x in (keys, values):
            torch.cat([x[:, :-WINDOW].gather(1, index), x[:, -WINDOW:]], 1)

    feed()
    contenders = {"ours": lambda: cut(layer, ROUTED, budget), "R-KV's form": published}
    samples = in_turn(clock, contenders, rounds, 1, before={"ours": feed})
    return {"rows": rows, "budget": budget, "kept_as_published": agreement, "seconds": samples}
