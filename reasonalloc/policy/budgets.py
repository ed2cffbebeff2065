"""How many slots each layer of each row may keep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reasonalloc.policy.policy import Policy
from reasonalloc.policy.size import Size, parse_bytes
from reasonalloc.policy.view import Numbers, RowView
from reasonalloc.policy.wave import WaveProfile
from reasonalloc.store.pages import PAGE_TOKENS

_REMEMBERED = 64  # totals; with a ratio every cut has new ones


def checked_shares(what: str, shares: Numbers, count: int, least: int, total: int | None) -> npt.NDArray[np.int64]:
    """What Python code returned, if it is `count` integers from `least` on that sum to `total` (None: to anything)."""
    try:
        numbers = np.asarray(shares, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.full(0, np.nan)
    fits = numbers.shape == (count,) and np.isfinite(numbers).all()
    if not fits or (numbers % 1).any() or (numbers < least).any() or total not in (None, int(numbers.sum())):
        to = "" if total is None else f" that sum to {total}"
        raise ValueError(f"{what} must be {count} whole numbers of at least {least}{to}, got {shares}")
    return numbers.astype(np.int64)


class Budgets:
    """Turns a size into layer totals of each row.

    demand: [rows, layers], the wave of each row (all ones where the policy does not use it).
    protect: [rows] first tokens that go last, as the cutter says. measured: [rows] whose wave is there; a row that
    takes it from its prompt is not cut before. too_short: [rows] whose prompt is one token, which says nothing. fixed:
    slots of a head, None where they depend on the row.
    """

    def __init__(
        self, size: Size, policy: Policy, profile: WaveProfile | None, layers: int, heads: int, page_bytes: int
    ) -> None:
        self.size, self.policy, self.profile = size, policy, profile
        self.layers, self.heads, self.page_bytes = layers, heads, page_bytes
        self._measures = policy.needs_wave and profile is None
        self.measured = np.zeros(0, np.bool_)
        self.too_short = np.zeros(0, np.bool_)
        self.fixed: int | None = None
        self.protect = np.zeros(0, np.int64)
        self._totals: dict[tuple[int, int, bytes, int, int], npt.NDArray[np.int64]] = {}
        self._newest: tuple[list[int], bytes, bytes, npt.NDArray[np.int64]] = (
            [],
            b"",
            b"",
            np.zeros((0, layers), np.int64),
        )
        self.demand = np.ones((0, layers))

    def start(self, rows: int) -> None:
        """Fixes what depends on the batch; ValueError if the size does not fit it."""
        self.demand = np.ones((rows, self.layers))
        self.protect = np.zeros(rows, np.int64)
        self.measured = np.full(rows, not self._measures)
        self.too_short = np.zeros(rows, np.bool_)
        if self.policy.needs_wave and self.profile is not None:
            self.demand[:] = self.profile.demand
        if self.size.budget is not None:
            self.fixed = self.size.budget
        elif self.size.max_bytes is not None:
            self.fixed = self._slots_in(self.size.max_bytes, rows)
        if not self.policy.unlimited:
            self.of_rows([0] * rows)  # an allocator's own totals are checked before anything is stored

    def set_wave(self, row: int, demand: Sequence[float]) -> None:
        """The wave that was measured on a row's prompt: [layers]."""
        self.demand[row], self.measured[row] = demand, True
        self.too_short[row] = max(demand) <= 1

    @property
    def wave_source(self) -> str:
        """Where the wave comes from."""
        if not self.policy.needs_wave:
            return "none"
        if not self._measures:
            return "profile"
        if not self.measured.any():
            return "to be measured on the first prefill"
        short = np.flatnonzero(self.too_short).tolist()
        return "measured on the first prefill" + (f", too short in rows {short}: uniform there" if short else "")

    def fitting(self, rows: int) -> int | None:
        """Slots of a KV head once there are that many rows, None with a ratio.

        More rows than before share max_bytes, so that each has less; ValueError if that is too little.
        """
        if self.size.max_bytes is None or self.fixed is None or rows <= len(self.demand):
            return self.fixed
        return min(self.fixed, self._slots_in(self.size.max_bytes, rows))

    def _slots_in(self, size: int | str, rows: int) -> int:
        window, interval = self.policy.schedule.window, self.policy.schedule.interval
        pages = parse_bytes(size) // (rows * self.layers * self.heads * self.page_bytes)
        # a head's last page may be nearly empty, so whole pages less one are sure to hold budget + interval slots
        slots = (pages - 1) * PAGE_TOKENS - interval
        if slots <= window:
            least = ((window + interval) // PAGE_TOKENS + 2) * rows * self.layers * self.heads * self.page_bytes
            raise ValueError(
                f"max_bytes={size!r} leaves no room above the window of {window} and the interval of"
                f" {interval} tokens: {rows} rows x {self.layers} layers x {self.heads} heads need at least {least}"
                " bytes"
            )
        return slots

    def per_head(self, tokens: int) -> int:
        """Mean slots of a KV head for a row of that many tokens."""
        if self.fixed is not None:
            return self.fixed
        return max(int((self.size.ratio or 0.0) * tokens), 2 * self.policy.schedule.window)

    def of_rows(self, tokens: list[int]) -> npt.NDArray[np.int64]:
        """[rows, layers] totals. tokens: [rows] tokens that each row has been given; all layers of a step ask once."""
        claims, protect = self.demand.tobytes(), self.protect.tobytes()
        if self._newest[:3] != (tokens, claims, protect):
            totals = np.array([self.totals(row, n) for row, n in enumerate(tokens)]).reshape(len(tokens), self.layers)
            self._newest = tokens, claims, protect, totals
        return self._newest[3]

    def totals(self, row: int, tokens: int) -> npt.NDArray[np.int64]:
        """[layers] slots that sum to per_head * heads * layers."""
        allocator, window = self.policy.layers, self.policy.schedule.window
        total = self.per_head(tokens) * self.heads * self.layers
        claims = self.demand[row]
        protected = int(self.protect[row])
        view = RowView(row, tokens, self.heads, window, protected=protected)
        what = f"layer totals of {allocator.title}"
        if allocator.sets_total:
            return checked_shares(what, allocator.totals(claims, total, view), self.layers, 0, None)
        seen = (0, 0) if getattr(allocator.totals, "steady", False) else (row, tokens)
        key = (total, protected, claims.tobytes(), *seen)
        if key not in self._totals:
            shares = allocator.totals(claims, total, view)
            shares = checked_shares(what, shares, self.layers, self.heads * window, total)
            if len(self._totals) >= _REMEMBERED:
                self._totals.clear()
            self._totals[key] = shares
        return self._totals[key]

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        """Row i becomes row source[i]."""
        self.fixed = self.fitting(len(source))
        self.demand, self.measured = self.demand[source], self.measured[source]
        self.too_short = self.too_short[source]
