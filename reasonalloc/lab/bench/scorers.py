"""An interval of one layer by each scorer: a step of one token, with what it gathers, and the cut, against R-KV's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from reasonalloc import _core
from reasonalloc.allocate import HEADS as ALLOCATORS
from reasonalloc.lab.bench.results import ScorerRow
from reasonalloc.lab.bench.settings import INTERVAL
from reasonalloc.lab.bench.states import States
from reasonalloc.lab.bench.timing import compared, take_turns, timed
from reasonalloc.policy.scorers import SCORERS, CoreScorer
from reasonalloc.store.pages import DTYPES, PagePool

WINDOW = 8
_WARM_CUTS = 2
_LIMIT_S = 30.0
_TOLERANCE = 1e-4  # relative


def names() -> list[str]:
    """Of the scorers in C, R-KV's first."""
    return ["rkv", *(x for x in SCORERS if x != "rkv" and issubclass(SCORERS[x], CoreScorer))]


class Interval:
    """A layer that is fed from `states` and cut from n to n - 128 slots a head by one scorer, evenly."""

    def __init__(self, scorer: str, states: States, n: int, dtype: torch.dtype) -> None:
        part = SCORERS[scorer]()
        if not isinstance(part, CoreScorer):
            raise ValueError(f"scorer {scorer!r} is not in C")
        self.states, self.n, self.dtype, self.fed, self.name = states, n, dtype, 0, scorer
        self.heads, self.query_heads, self.d = states.keys.shape[0], states.queries.shape[0], states.keys.shape[2]
        self.pool, self.score = PagePool(DTYPES[dtype], self.d), part.arguments(0)
        shape = (self.pool.core, 1, self.heads, self.query_heads, WINDOW, part.core, INTERVAL)
        self.layer = _core.Layer(*shape, part.statistics)
        if part.core == "triattention":
            self._set_centres()
        self.budgets = np.zeros((1, self.heads), np.int64)
        self.total = (n - INTERVAL) * self.heads
        self.out = torch.empty(1, 1, self.query_heads, self.d, dtype=dtype)
        self._append(n - INTERVAL)
        for _ in range(_WARM_CUTS):
            self.interval()
            self.cut()
        self.step_s: list[float] = []

    def _set_centres(self) -> None:
        """A distribution of queries; what it says does not matter to the time."""
        random, pairs = np.random.default_rng(0), self.d // 2
        mean = random.standard_normal((self.query_heads, self.d)).astype(np.float32)
        length = random.uniform(1, 4, (self.query_heads, pairs)).astype(np.float32)
        self.layer.set_centres(10000.0 ** (-np.arange(pairs) / pairs), mean, length)

    def _append(self, count: int, cut_in: int = -1) -> Callable[[], None]:
        part = self.states.part(self.fed, count)
        q, k, v = (x[None].to(self.dtype).contiguous() for x in (part.queries, part.keys, part.values))
        out, left = (self.out if count == 1 else None), np.array([cut_in])
        self.fed += count

        def run() -> None:
            self.pool.step(self.layer, q, k, v, out, self.d**-0.5, left)

        if count > 1:
            run()
        return run

    def interval(self) -> float:
        """Feeds one, the last tokens singly; mean seconds of those steps."""
        self._append(INTERVAL - WINDOW)
        return sum(timed(self._append(1, left)) for left in range(WINDOW - 1, -1, -1)) / WINDOW

    def cut(self) -> None:
        route = (ALLOCATORS["uniform"], 0.5, 0.25, 2.0, 0.25, 0.2)
        results = (self.budgets, np.zeros((1, self.heads)), np.zeros(1, np.bool_))
        while missing := self.layer.cut(np.array([self.total]), np.zeros(1, np.int64), self.score, route, *results):
            self.pool.grow(missing)

    def turn(self) -> float:
        """Seconds of a cut; those of a step are kept."""
        self.step_s.append(self.interval())
        return timed(self.cut)

    def _state(self, head: int) -> tuple[torch.Tensor, ...]:
        n = len(self.layer.positions(0, head)) // 4
        keys, values = np.empty((n, self.d), np.float32), np.empty((n, self.d), np.float32)
        self.layer.read(0, head, False, keys)
        self.layer.read(0, head, True, values)
        count, raw = self.layer.queries(0)
        queries = torch.frombuffer(bytearray(raw), dtype=torch.float32).view(self.heads, -1, count, self.d)[head]
        return queries, torch.from_numpy(keys), torch.from_numpy(values)

    def check(self) -> float:
        """Feeds and cuts once; the largest relative error of a score where its plain form is here, else 0.

        RuntimeError if a score is off or not finite, or a head keeps another number of slots than it should.
        """
        self.interval()
        states = [self._state(h) for h in range(self.heads)]
        older = [len(keys) - WINDOW for _, keys, _ in states]
        flat, worst = np.empty(sum(older), np.float32), 0.0
        self.layer.cut_score(np.array([self.total]), self.score, np.zeros(1, np.bool_))
        self.layer.cut_scores(0, flat)
        self.layer.cut_abandon()
        for got, state in zip(np.split(flat, np.cumsum(older)[:-1]), states, strict=True):
            if (want := plain(self.name, *state)) is not None:
                worst = max(worst, float((torch.from_numpy(got) / want - 1).abs().max()))
        self.cut()
        if not np.isfinite(flat).all() or not worst <= _TOLERANCE or self.budgets.sum() != self.total:
            raise RuntimeError(
                f"{self.name} at n={self.n}: scores off by {worst:.1e} (allowed {_TOLERANCE:.0e}), budgets"
                f" {self.budgets.tolist()} of {self.total}; not timed"
            )
        return worst


def plain(name: str, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor | None:
    """Scores of a head's older tokens in torch, of the scorers that have a short form."""
    if name not in ("snapkv-published", "vatp"):
        return None
    (_, window, d), n = queries.shape, len(keys)
    causal = torch.ones(window, n, dtype=torch.bool).tril(n - window)
    logits = (queries @ keys.T * d**-0.5).masked_fill(~causal, -torch.inf)
    mass: torch.Tensor = logits.softmax(-1).mean((0, 1))[: n - window]
    if name == "vatp":
        return mass * values[: n - window].abs().sum(1)
    pooled: torch.Tensor = torch.nn.functional.avg_pool1d(mass[None], 5, 1, 2)[0]
    return pooled


def rows(states: States, sizes: Sequence[int], dtypes: Sequence[torch.dtype], rounds: int) -> Iterator[ScorerRow]:
    """Scorers in turn."""
    for dtype in dtypes:
        for n in sizes:
            layers = {name: Interval(name, states, n, dtype) for name in names()}
            errors = {name: layer.check() for name, layer in layers.items()}
            for layer in layers.values():
                layer.step_s.clear()
            cuts = take_turns({name: layer.turn for name, layer in layers.items()}, rounds, _LIMIT_S)
            steps = {name: layer.step_s[1:] for name, layer in layers.items()}  # the first round is thrown away
            yield {
                "dtype": DTYPES[dtype],
                "n": n,
                "errors": errors,
                "cut": compared(cuts, own="rkv"),
                "step": compared(steps, own="rkv"),
            }
