"""When each row of a batch is cut: by its own tokens alone, whatever padding its neighbours bring."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Segment(NamedTuple):
    """A part of a forward pass. tokens, due: [rows] its tokens of each row, and which are cut after it, if any_due.

    cut_in: [rows] passes of one token that follow before the next cut, 0 where it comes right after this segment.
    """

    tokens: Ints
    due: Flags
    any_due: bool
    cut_in: Ints


@dataclass(frozen=True)
class ClockState:
    """What `Clocks` remember once a prompt is over or not begun; a number for each row."""

    since: tuple[int, ...]
    prompt: tuple[int, ...]
    never: tuple[bool, ...]
    width: int
    prefilling: bool

    def __post_init__(self) -> None:
        if (
            not len(self.since) == len(self.prompt) == len(self.never)
            or min(0, self.width, *self.since, *self.prompt) < 0
        ):
            raise ValueError(f"clocks have numbers from 0 for each row, got {self}")


class Clocks:
    """A count-down for each row.

    A row is cut at the end of its prompt, and then as soon as a pass ends with `interval` of its tokens since the last
    cut. A prompt that is fed in chunks is cut between them too, at whole multiples of the chunk's width on the row's
    own count: in a batch with padding on the left these places lie within a pass, which then has several segments. That
    a prompt has ended amid a chunk shows only when a pass of one token follows; such rows are overdue until then.

    whole_prompts: a prompt is cut only once it has ended (its wave is measured first).
    """

    def __init__(self, rows: int, interval: int, whole_prompts: bool = False) -> None:
        self.interval, self.whole_prompts = interval, whole_prompts
        self.since: Ints = np.zeros(rows, np.int64)  # tokens since the last cut
        self.prompt: Ints = np.zeros(rows, np.int64)  # tokens of the prompt so far
        self.never: Flags = np.ones(rows, np.bool_)  # not cut yet
        self.open: Flags = np.zeros(rows, np.bool_)  # in its prompt, and not known to be at its end
        self._width = 0  # of the chunks of the prompt that is being fed
        self._all_cut, self._none = False, np.zeros(rows, np.bool_)  # not self.never.any(), and no row
        self._at_most = interval  # max of since, or more
        self._prefilling = True

    def ended(self, width: int) -> Flags | None:
        """Rows that must be cut before a pass of this width, since their prompt is over; None: no row. Call it once for
        a pass."""
        return None if width > 1 and self._prefilling else self.settle()

    def settle(self) -> Flags | None:
        """The prompt is over: rows to be cut now; None: no row."""
        if not self._prefilling:  # nothing is open
            return None
        due = self.open & self._is_due()
        self.open = np.zeros_like(self.open)
        self._prefilling = self._prefilling and not (self.prompt > 0).any()
        self._reset(due)
        return due

    def _is_due(self) -> Flags:
        return (self.since > 0) & (self.never | (self.since >= self.interval))

    def _reset(self, due: Flags) -> None:
        if due.any():
            self.since, self.never = np.where(due, 0, self.since), self.never & ~due
            self._all_cut = not self.never.any()

    def plan(self, fresh: Ints, width: int, last: bool = False) -> list[Segment]:
        """The segments of a pass, which counts as done. fresh: [rows] tokens that are not padding, of `width` each.

        last: no more of the prompt follows, where that is known.
        """
        self._width = self._width or width
        if not self._prefilling:
            return [self._segment(fresh, width, None)]
        segments = []
        left = fresh.copy()
        while True:
            # Up to the next whole multiple of the chunk's width on the row's own count.
            take = left if self.whole_prompts else np.minimum(left, self._width - self.prompt % self._width)
            self.prompt = self.prompt + take
            left = left - take
            at_place = (take > 0) & (self.prompt % self._width == 0) & (not self.whole_prompts)
            self.open = np.where(take > 0, ~at_place, self.open)
            # A row that is done may wait for segments of others: its prompt has ended all the same.
            segments.append(self._segment(take, width, at_place | (self.open & (left == 0) & last)))
            if not left.any():
                break
        if last:
            self.open = np.zeros_like(self.open)
            self._prefilling = False
        return segments

    def _segment(self, tokens: Ints, width: int, ends: Flags | None) -> Segment:
        """ends: rows for which a cut may come after these tokens; None: all."""
        self.since = self.since + tokens
        if self._all_cut and self._is_far(width):
            return Segment(tokens, self._none, False, self.interval - self.since)
        due = (tokens > 0) & self._is_due()
        if ends is not None:
            due &= ends
        ahead, any_due = self.interval - self.since, bool(due.any())
        if any_due or (ahead <= 0).any():
            ahead = np.where(due, 0, np.where(ahead > 0, ahead, -1))  # -1: near, but not known to come right after this
            self._reset(due)
        return Segment(tokens, due, any_due, ahead)

    def _is_far(self, width: int) -> bool:
        """No row is due after at most `width` more tokens."""
        self._at_most += width
        if self._at_most >= self.interval:
            self._at_most = int(self.since.max())
        return self._at_most < self.interval

    def crop(self, tokens: Ints) -> None:
        """The newest tokens [rows] were taken back."""
        self.since = np.maximum(self.since - tokens, 0)
        self.prompt = np.maximum(self.prompt - tokens, 0) if self._prefilling else self.prompt

    def move_rows(self, source: Ints) -> None:
        """Row i becomes row source[i]."""
        for name in ("since", "prompt", "never", "open"):
            setattr(self, name, getattr(self, name)[source])
        self._all_cut, self._none = not self.never.any(), np.zeros(len(source), np.bool_)

    @property
    def state(self) -> ClockState:
        """For a file, when no row is amid its prompt (`settle`)."""
        since, prompt = (tuple(map(int, x)) for x in (self.since, self.prompt))
        return ClockState(since, prompt, tuple(map(bool, self.never)), self._width, self._prefilling)

    def restore(self, state: ClockState) -> None:
        """Goes on from a state; ValueError if it is of another number of rows."""
        if len(state.since) != len(self.since):
            raise ValueError(f"its clocks are of {len(state.since)} rows, here there are {len(self.since)}")
        self.since, self.prompt = np.array(state.since, np.int64), np.array(state.prompt, np.int64)
        self.never, self.open = np.array(state.never, np.bool_), np.zeros(len(state.since), np.bool_)
        self._width, self._prefilling = state.width, state.prefilling
        self._at_most = self.interval

    def copy(self) -> Clocks:
        """One that goes on from here; arrays are never changed in place."""
        twin = object.__new__(Clocks)
        twin.__dict__.update(self.__dict__)
        return twin


class CommonClock:
    """One count-down for all rows, padding included, for schedules that say themselves when the next cut comes."""

    def __init__(self, rows: int, steps_left: Callable[[int, int, int, int], int]) -> None:
        self.rows, self.steps_left = rows, steps_left
        self.length = self.since = 0

    def ended(self, width: int) -> None:
        """No row: cuts come after passes."""

    def settle(self) -> None:
        """No row."""

    def plan(self, fresh: Ints, width: int, last: bool = False) -> list[Segment]:
        """One segment. May raise ValueError for a pass that cannot be; nothing has changed then."""
        ahead = self.steps_left(self.rows, self.length, self.since, width)
        self.length += width
        self.since = 0 if ahead == 0 else self.since + width
        return [Segment(fresh, np.full(self.rows, ahead == 0), ahead == 0, np.full(self.rows, ahead))]

    def crop(self, tokens: Ints) -> None:
        """The newest tokens [rows] were taken back, as many of each row."""
        most = int(tokens.max(initial=0))
        self.length, self.since = self.length - most, max(0, self.since - most)

    def move_rows(self, source: Ints) -> None:
        """Row i becomes row source[i]."""
        self.rows = len(source)

    def copy(self) -> CommonClock:
        """One that goes on from here."""
        return copy(self)
