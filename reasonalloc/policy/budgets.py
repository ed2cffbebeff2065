"""How many slots each layer of each row may keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reasonalloc.config import Config, parse_bytes
from reasonalloc.methods import Method
from reasonalloc.store.pages import PAGE_TOKENS


def checked_shares(what: str, shares: Any, count: int, least: int, total: int) -> npt.NDArray[np.int64]:
    """What a method's Python code returned, if it is `count` integers of at least `least` that sum to `total`."""
    try:
        numbers = np.asarray(shares, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.full(0, np.nan)
    fits = numbers.shape == (count,) and np.isfinite(numbers).all()
    if not fits or (numbers % 1).any() or (numbers < least).any() or int(numbers.sum()) != total:
        raise ValueError(f"{what} must be {count} whole numbers of at least {least} that sum to {total}, got {shares}")
    return numbers.astype(np.int64)


class Budgets:
    """Turns budget, ratio or max_bytes into layer totals of each row; knows the wave.

    demand: [rows, layers], the wave of each row (all ones where the method does not use it).
    measures: the wave is being taken from the first prefill. waits: cuts wait until that is done.
    """

    def __init__(self, config: Config, method: Method, layers: int, heads: int, page_bytes: int) -> None:
        self.config, self.method, self.layers, self.heads, self.page_bytes = config, method, layers, heads, page_bytes
        self.measures = self.waits = method.needs_wave and config.profile is None
        self.wave_source = "none"
        if method.needs_wave:
            self.wave_source = "measured on the first prefill" if self.measures else "profile"
        self._fixed: int | None = None
        self._known: dict[tuple[int, bytes], npt.NDArray[np.int64]] = {}
        self.demand = np.ones((0, layers))

    def start(self, rows: int) -> None:
        """Fixes what depends on the batch; ValueError if the budget does not fit it."""
        self.demand = np.ones((rows, self.layers))
        if self.method.needs_wave and self.config.profile is not None:
            self.demand[:] = self.config.profile.demand
        if self.config.budget is not None:
            self._fixed = self.config.budget
        elif self.config.max_bytes is not None:
            limit = parse_bytes(self.config.max_bytes)
            pages = limit // (rows * self.layers * self.heads * self.page_bytes)
            # a head's last page may be nearly empty, so whole pages less one are sure to hold budget + interval slots
            self._fixed = (pages - 1) * PAGE_TOKENS - self.method.interval
            if self._fixed <= self.config.window:
                least = (self.config.window + self.method.interval) // PAGE_TOKENS + 2
                least *= rows * self.layers * self.heads * self.page_bytes
                raise ValueError(
                    f"max_bytes={self.config.max_bytes!r} leaves no room above the window of {self.config.window} and"
                    f" the interval of {self.method.interval} tokens: {rows} rows x {self.layers} layers x"
                    f" {self.heads} heads need at least {least} bytes"
                )

        if not self.method.unlimited:
            self.totals(0, 0)  # a method's own totals are checked before anything is stored

    def per_head(self, seen: int) -> int:
        """Mean slots of a KV head for a row that has seen that many tokens."""
        if self._fixed is not None:
            return self._fixed
        return max(int((self.config.ratio or 0.0) * seen), 2 * self.config.window)

    def totals(self, row: int, seen: int) -> npt.NDArray[np.int64]:
        """[layers] slots that sum to per_head * heads * layers."""
        per_head = self.per_head(seen)
        key = (per_head, self.demand[row].tobytes())
        if key not in self._known:
            total = per_head * self.heads * self.layers
            result = self.method.layer_totals(self.demand[row], total, self.heads, self.config)
            what = f"layer totals of method {self.config.method!r}"
            shares = checked_shares(what, result, self.layers, self.heads * self.config.window, total)
            if len(self._known) > 64:  # ratio: a new budget at every cut
                self._known.clear()
            self._known[key] = shares
        return self._known[key]

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        self.demand = self.demand[source]
