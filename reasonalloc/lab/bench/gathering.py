"""What it costs that attention leaves statistics behind: decode steps of one layer with and without, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from reasonalloc import _core
from reasonalloc.lab.bench.attention import TOLERANCE, Shape
from reasonalloc.lab.bench.results import GatheringRow
from reasonalloc.lab.bench.timing import compared, take_turns, timed
from reasonalloc.store.pages import DTYPES, PagePool

CONTENDERS: dict[str, str | None] = {"nothing": None, "accumulated": "h2o", "recurrence": "lazy"}
_CALLS = 32


class _Steps:
    """A layer of n slots that decodes. statistic: a key of `CONTENDERS`."""

    def __init__(self, shape: Shape, dtype: torch.dtype, n: int, statistic: str) -> None:
        generator = torch.Generator().manual_seed(3)
        self.shape, self.statistic = shape, statistic
        heads, pool = shape.heads, PagePool(DTYPES[dtype], shape.head_dim)
        self.core = _core.Layer(
            pool.core,
            1,
            heads,
            heads * shape.group,
            shape.window,
            CONTENDERS[statistic],
            0,
            (2, 1.0, 1e-4, False, False),
        )
        tokens = [
            torch.randn(1, h, n, shape.head_dim, generator=generator).to(dtype) for h in (heads * shape.group, heads)
        ]
        queries, keys = tokens
        prompt = np.ones(1, np.bool_)
        before = [x[:, :, :-1] for x in (queries, keys, keys)]
        pool.step(self.core, *before, None, 1.0, None, None, None, 0.0, None, None, prompt)
        pool.grow(heads)
        self.query, self.newest = queries[:, :, -1:].contiguous(), keys[:, :, -1:].contiguous()
        self.keys = keys
        self.out = torch.empty(1, 1, heads * shape.group, shape.head_dim, dtype=dtype)

    def step(self) -> None:
        """One token more, which is taken back; what its query has added stays."""
        self.core.step(self.query, self.newest, self.newest, self.out, self.shape.head_dim**-0.5)
        self.core.crop(1)

    def check(self) -> float:
        """Largest difference of a step's sums from float64; RuntimeError where it is too large."""
        if self.statistic != "accumulated":
            self.step()
            return 0.0
        before = self._sums()
        self.core.step(self.query, self.newest, self.newest, self.out, self.shape.head_dim**-0.5)
        error, group = 0.0, self.shape.group
        for head, sums in enumerate(self._sums()):
            query = self.query[0, head * group : (head + 1) * group, 0].double()
            p = (query @ self.keys[0, head].double().T * self.shape.head_dim**-0.5).softmax(-1).sum(0)
            p[:-1] += torch.from_numpy(before[head]).double()
            error = max(error, float((p - torch.from_numpy(sums).double()).abs().max()))
        self.core.crop(1)
        if not error <= TOLERANCE[torch.float32]:
            raise RuntimeError(f"accumulated attention is off by {error:.1e}; not timed")
        return error

    def _sums(self) -> list[np.ndarray]:
        return [np.frombuffer(self.core.columns(0, h)[1], np.float32).copy() for h in range(self.shape.heads)]

    def time(self) -> float:
        """Seconds of a step."""
        return timed(self._many) / _CALLS

    def _many(self) -> None:
        for _ in range(_CALLS):
            self.step()


def rows(shape: Shape, dtypes: Sequence[torch.dtype], sizes: Sequence[int], runs: int) -> Iterator[GatheringRow]:
    """Every case; ratio: of a step that gathers, to one that does not."""
    for dtype in dtypes:
        for n in sizes:
            cases = {name: _Steps(shape, dtype, n, name) for name in CONTENDERS}
            error = max(case.check() for case in cases.values())
            seconds = take_turns({name: partial(case.time) for name, case in cases.items()}, runs)
            yield {"dtype": DTYPES[dtype], "n": n, "max_error": error, **compared(seconds, own="nothing")}
