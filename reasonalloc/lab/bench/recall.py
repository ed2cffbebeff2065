"""A cut with a cold tier beside the same cut without: what it costs to score evicted tokens again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from reasonalloc.lab.bench.compression import Ours
from reasonalloc.lab.bench.results import RecallRow
from reasonalloc.lab.bench.settings import INTERVAL
from reasonalloc.lab.bench.states import States
from reasonalloc.lab.bench.timing import compared, take_turns

FORMATS = ("same", "int8")
_ROW_LIMIT_S = 30.0


class Recalling(Ours):
    """A layer whose heads have `cold` tokens in their tier once it has been fed n + cold and cut.

    All get the same slots: a head whose share grows takes tokens back, and its tier is not full.
    """

    def __init__(self, states: States, n: int, dtype: torch.dtype, cold: int, cold_format: str) -> None:
        super().__init__(states, n, dtype, heads="uniform")
        self.layer.keep_cold(cold, cold_format)
        self.cold, self._recalls = cold, False

    def feed(self, count: int) -> None:
        super().feed(count)
        while self._recalls and (missing := self.layer.cut_recall(self.arguments[0])):
            self.pool.grow(missing)

    def checked_cut(self) -> dict[str, float]:
        """As of `Ours`, over what was evicted too; RuntimeError also where the tier is not full."""
        self._recalls = True
        checked = super().checked_cut()
        self._recalls = False
        slots = np.zeros((1, self.heads), np.int64)
        self.layer.cold_slots(slots)
        if not (slots == self.cold).all():
            raise RuntimeError(f"n={self.n}: heads have {slots.tolist()} cold tokens of {self.cold}; not timed")
        return checked


def rows(
    chains: Mapping[str, States], n: int, cold: Sequence[int], dtypes: Sequence[torch.dtype], runs: int
) -> Iterator[RecallRow]:
    """Cuts from n to n - 128 slots a head with so many cold tokens a head, in steady state."""
    for kind, states in chains.items():
        for dtype in dtypes:
            for count in cold:
                layers = {"ours": Ours(states, n, dtype, heads="uniform")}
                layers |= {f"recall, {name}": Recalling(states, n, dtype, count, name) for name in FORMATS}
                checked, record_bytes = {}, {}
                for name, layer in layers.items():
                    layer.feed(n + count + 2 * INTERVAL if name != "ours" else n)
                    layer.compress()
                    checked[name] = layer.checked_cut()["score_error"]
                    record_bytes[name] = layer.pool.cold_bytes
                seconds = take_turns({name: x.timed_cut for name, x in layers.items()}, runs, _ROW_LIMIT_S)
                yield {
                    "keys": kind,
                    "dtype": str(dtype)[6:],
                    "n": n,
                    "cold": count,
                    "checked": checked,
                    "cold_bytes": record_bytes,
                    **compared(seconds),
                }
