"""One compression of one layer, score + route + evict, against R-KV's published form and code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from reasonalloc import _core
from reasonalloc.allocate import HEADS as ALLOCATORS
from reasonalloc.config import Config
from reasonalloc.lab.bench.reference import ALPHA, POOL, THRESHOLD, rkv_compress, rkv_published_form
from reasonalloc.lab.bench.results import CompressionRow
from reasonalloc.lab.bench.rkv_repo import R1KV
from reasonalloc.lab.bench.settings import INTERVAL
from reasonalloc.lab.bench.states import States
from reasonalloc.lab.bench.timing import compared, take_turns, timed
from reasonalloc.store.pages import DTYPES, PagePool

WINDOW = 8
_SINGLE = 8  # tokens of an interval that come one by one, with attention, right before the cut
_WARM_CUTS = 3  # before the check: what is remembered from cut to cut is checked too
_ROW_LIMIT_S = 30.0
_TOLERANCE = 1e-5

Compress = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def _batch(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x[None].to(dtype).contiguous()


class Ours:
    """A layer that is fed from `states` and cut from n to n - 128 slots a head, on average. heads: what shares them
    out."""

    def __init__(self, states: States, n: int, dtype: torch.dtype, heads: str = "route") -> None:
        self.states, self.n, self.dtype, self.fed = states, n, dtype, 0
        self.heads, self.query_heads, self.d = states.keys.shape[0], states.queries.shape[0], states.keys.shape[2]
        self.pool = PagePool(DTYPES[dtype], self.d)
        self.layer = _core.Layer(self.pool.core, 1, self.heads, self.query_heads, WINDOW, "rkv", INTERVAL)
        self.total = (n - INTERVAL) * self.heads
        c = Config(method="reasonalloc", budget=max(n - INTERVAL, WINDOW + 1))
        self.score_config = ("rkv", ALPHA, THRESHOLD, POOL, 0)
        route = (ALLOCATORS[heads], c.gamma, c.lo, c.hi, c.mu, c.safeguard)
        self.budgets = np.zeros((1, self.heads), dtype=np.int64)
        self.arguments = (
            np.array([self.total], dtype=np.int64),
            np.zeros(1, dtype=np.int64),
            self.score_config,
            route,
            self.budgets,
            np.zeros((1, self.heads)),
            np.zeros(1, dtype=np.bool_),
        )

    def _step(self, count: int, attend: bool, cut_in: int = -1) -> None:
        part = self.states.part(self.fed, count)
        q, k, v = (_batch(x, self.dtype) for x in (part.queries, part.keys, part.values))
        out = torch.empty(1, count, self.query_heads, self.d, dtype=self.dtype) if attend else None
        self.pool.step(self.layer, q, k, v, out, self.d**-0.5, np.array([cut_in]))
        self.fed += count

    def feed(self, count: int) -> None:
        """New tokens as decoding leaves them: the last ones one at a time, with attention."""
        if count > _SINGLE:
            self._step(count - _SINGLE, attend=False)
        for left in range(min(count, _SINGLE) - 1, -1, -1):
            self._step(1, attend=True, cut_in=left)

    def compress(self) -> None:
        while missing := self.layer.cut(*self.arguments):
            self.pool.grow(missing)

    def timed_cut(self) -> float:
        """Feeds an interval, untimed; seconds of the cut after it."""
        self.feed(INTERVAL)
        return timed(self.compress)

    def positions(self) -> list[np.ndarray]:
        return [np.frombuffer(self.layer.positions(0, h), np.int32) for h in range(self.heads)]

    def _expected(self) -> list[torch.Tensor]:
        """Scores of each head by the published form, in float32 from what the layer holds."""
        count, raw = self.layer.queries(0)
        queries = torch.frombuffer(bytearray(raw), dtype=torch.float32).view(self.heads, -1, count, self.d)
        result = []
        for h, positions in enumerate(self.positions()):
            keys = np.empty((len(positions), self.d), np.float32)
            self.layer.read(0, h, False, keys)
            result.append(rkv_published_form(queries[h], torch.from_numpy(keys)[None])[0])
        return result

    def checked_cut(self) -> dict[str, float]:
        """Feeds an interval and cuts, with everything compared: scores, the sum of the budgets, and who stays.

        RuntimeError if a score is off or a token went though its score is above that of one that stayed.
        """
        self.feed(INTERVAL)
        expected, before = self._expected(), self.positions()
        scores = np.empty(sum(len(x) for x in expected), np.float32)
        self.layer.cut_score(np.zeros(1, np.int64), self.score_config, np.zeros(1, np.bool_))
        self.layer.cut_scores(0, scores)
        self.layer.cut_abandon()
        wanted = torch.cat(expected).numpy()
        error = float(np.abs(scores - wanted).max())
        if not error <= _TOLERANCE:
            raise RuntimeError(f"scores at n={self.n}: off by {error:.1e} (allowed {_TOLERANCE:.0e}); not timed")
        self.compress()
        if self.budgets.sum() != self.total:
            raise RuntimeError(f"budgets {self.budgets.tolist()} do not sum to {self.total}; not timed")
        worst = 0.0
        for positions, after, score in zip(before, self.positions(), expected, strict=True):
            stays = np.isin(positions, after)
            older, values = stays[:-WINDOW], score.numpy()
            if not stays[-WINDOW:].all():
                raise RuntimeError(f"n={self.n}: a token of the window was evicted; not timed")
            if older.any() and not older.all():
                worst = max(worst, float(values[~older].max() - values[older].min()))
        if worst > _TOLERANCE:
            raise RuntimeError(f"n={self.n}: a token went whose score is {worst:.1e} above one that stayed; not timed")
        return {"score_error": error, "order_error": worst}


class Peer:
    """The same from dense tensors, by a function that compresses; what it kept is what the next call is given."""

    def __init__(self, states: States, n: int, dtype: torch.dtype, function: Compress) -> None:
        self.states, self.n, self.dtype, self.function, self.fed = states, n, dtype, function, 0
        d = states.keys.shape[2]
        self.queries = torch.empty(1, states.queries.shape[0], 0, d, dtype=dtype)
        self.keys = self.values = torch.empty(1, states.keys.shape[0], 0, d, dtype=dtype)

    def feed(self, count: int) -> None:
        part = self.states.part(self.fed, count)
        self.fed += count
        self.keys = torch.cat([self.keys, _batch(part.keys, self.dtype)], 2)
        self.values = torch.cat([self.values, _batch(part.values, self.dtype)], 2)
        self.queries = torch.cat([self.queries, _batch(part.queries, self.dtype)], 2)[:, :, -WINDOW:].contiguous()

    def compress(self) -> None:
        self.keys, self.values = self.function(self.queries, self.keys, self.values, self.n - INTERVAL)

    def timed_cut(self) -> float:
        self.feed(INTERVAL)
        return timed(self.compress)


def repository_form(rkv_class: Callable[..., R1KV]) -> Compress:
    """R1KV.update_kv of a clone of Zefan-Cai/R-KV, with the paper's settings."""
    made: dict[int, R1KV] = {}

    def compress(
        queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, budget: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if budget not in made:
            made[budget] = rkv_class(budget=budget, window_size=WINDOW, kernel_size=POOL, mix_lambda=ALPHA)
        return made[budget].update_kv(keys, queries, values)

    return compress


def _agree(states: States, n: int, function: Compress) -> float:
    """Share of tokens that another form of R-KV keeps as the published form does, in float32."""
    part = states.part(0, n)
    queries, keys = part.queries[None, :, -WINDOW:].contiguous(), part.keys[None].contiguous()
    number = torch.arange(n, dtype=torch.float32)[None, None, :, None].expand_as(keys)  # values that tell who stayed
    sets = []
    for form in (rkv_compress, function):
        kept = form(queries, keys, number.contiguous(), n - INTERVAL)[1][0, :, :, 0]
        sets.append([set(head.tolist()) for head in kept])
    return sum(len(a & b) for a, b in zip(*sets, strict=True)) / sum(len(a) for a in sets[0])


def _first_cut(make: Callable[[], Ours | Peer], n: int) -> Callable[[], float]:
    def run() -> float:
        fresh = make()
        fresh.feed(n)
        return timed(fresh.compress)

    return run


def rows(
    chains: Mapping[str, States],
    sizes: Sequence[int],
    dtypes: Sequence[torch.dtype],
    peers: Mapping[str, Compress],
    runs: int,
    first_at: int | None = None,
) -> Iterator[CompressionRow]:
    """Cuts from n to n - 128 slots a head in steady state, and at `first_at` also the first cut of a fresh layer.

    peers: by name; "published form" is always among them.
    """
    forms: dict[str, Compress] = {"published form": rkv_compress, **peers}
    for kind, states in chains.items():
        for dtype in dtypes:
            for n in sizes:
                same = {name: _agree(states, n, form) for name, form in peers.items()}
                if any(x < 0.98 for x in same.values()):
                    raise RuntimeError(f"a form of R-KV keeps other tokens than the published one, n={n}: {same}")
                for state in ("steady", "first") if n == first_at else ("steady",):
                    ours = Ours(states, n, dtype)
                    ours.feed(n)
                    ours.compress()
                    for _ in range(_WARM_CUTS):
                        ours.timed_cut()
                    checked = ours.checked_cut()
                    contenders: dict[str, Callable[[], float]]
                    if state == "steady":
                        contenders = {"ours": ours.timed_cut}
                        for name, form in forms.items():
                            peer = Peer(states, n, dtype, form)
                            peer.feed(n - INTERVAL)
                            contenders[name] = peer.timed_cut
                    else:
                        contenders = {"ours": _first_cut(lambda s=states, m=n, t=dtype: Ours(s, m, t), n)}  # type: ignore[misc]
                        for name, form in forms.items():
                            contenders[name] = _first_cut(
                                lambda s=states, m=n, t=dtype, f=form: Peer(s, m, t, f),  # type: ignore[misc]
                                n,
                            )
                    seconds = take_turns(contenders, runs, _ROW_LIMIT_S)
                    if state == "steady":
                        checked["after_timing"] = ours.checked_cut()["score_error"]
                    yield {
                        "keys": kind,
                        "dtype": str(dtype)[6:],
                        "n": n,
                        "cut": state,
                        "kept": n - INTERVAL,
                        "checked": checked,
                        "kept_as_published": same,
                        **compared(seconds),
                    }
