"""Which columns of a batch are tokens and which are padding, and what a mask hides of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NewTokens:
    """Which of a pass's tokens are real.

    real: [B, T] flags; None where all are, and then begin and index too. begin: [B + 1] first token of each row in
    index, the places of its real tokens. visible: [begin[B], positions] whether a new token sees a position of its row;
    None where each sees all before it.
    """

    real: Flags | None = None
    begin: Ints | None = None
    index: Ints | None = None
    visible: Flags | None = None

    @classmethod
    def of(cls, real: Flags, visible: Flags | None = None) -> NewTokens:
        begin = np.zeros(len(real) + 1, np.int64)
        np.cumsum(real.sum(1), out=begin[1:])
        return cls(real, begin, np.ascontiguousarray(np.nonzero(real)[1], np.int64), visible)

    def counts(self, rows: int, width: int) -> Ints:
        """[rows] real tokens of each; width: tokens of each, padding included."""
        return np.full(rows, width, np.int64) if self.begin is None else np.diff(self.begin)

    def part(self, rows: int, width: int, done: Ints, take: Ints) -> NewTokens:
        """The next take[row] tokens of each row, after the first done[row]."""
        whole = self if self.begin is not None else NewTokens.of(np.ones((rows, width), np.bool_), self.visible)
        if whole.begin is None or whole.index is None:
            raise RuntimeError("tokens without places")  # `of` gives them
        begin = np.zeros(rows + 1, np.int64)
        np.cumsum(take, out=begin[1:])
        first = whole.begin[:-1] + done
        places = np.concatenate([np.arange(f, f + n) for f, n in zip(first, take, strict=True)]).astype(np.int64)
        visible = None if whole.visible is None else np.ascontiguousarray(whole.visible[places])
        return NewTokens(whole.real, begin, whole.index[places], visible)


ALL = NewTokens()


class Columns:
    """Of each row, which of the columns given so far were real tokens. They are counted only once one was padding."""

    def __init__(self, length: int = 0, real: Flags | None = None) -> None:
        self.length = length
        self._real = real  # [B, room]

    @property
    def real(self) -> Flags | None:
        """[B, length]; None: all of them."""
        return None if self._real is None else self._real[:, : self.length]

    @property
    def whole(self) -> int:
        """How many of the newest columns are tokens of every row."""
        if self.real is None:
            return self.length
        padded = np.flatnonzero(~self.real.all(0))
        return self.length - 1 - int(padded[-1]) if len(padded) else self.length

    def append(self, rows: int, width: int, real: Flags | None) -> None:
        """The columns of a pass. real: [B, T], None: all."""
        if real is not None and self._real is None:
            self._real = np.ones((rows, self.length + width), np.bool_)
        if self._real is not None:
            end = self.length + width
            if end > self._real.shape[1]:
                more = np.ones((rows, max(width, self._real.shape[1] // 2)), np.bool_)
                self._real = np.concatenate([self._real, more], 1)
            self._real[:, self.length : end] = True if real is None else real
        self.length += width

    def crop(self, tokens: int) -> None:
        self.length -= tokens

    def move_rows(self, source: Ints) -> None:
        """Row i becomes row source[i]."""
        self._real = None if self._real is None else self._real[source]

    def hidden(self, shown: Flags) -> Flags | None:
        """[B, length] real columns that a mask does not show; None if it shows them all.

        shown: [B, length]. ValueError for a mask that shows what was padding when it was given: it was not kept.
        """
        real = self.real
        if real is None:
            return None if shown.all() else ~shown
        wrong = shown & ~real
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"the attention mask shows column {column} of row {row}, which was padding when it was given and"
                " was not kept; give the mask that the earlier passes had"
            )
        hidden = real & ~shown
        return hidden if hidden.any() else None


def visible_positions(columns: Columns, hidden: Flags | None, new: Flags, pairs: Flags) -> Flags:
    """[new tokens, positions] whether each sees a position of its row.

    hidden: [B, length] real columns that are hidden; None: none. new: [B, T] real new tokens. pairs: [B, T, T] which
    new tokens see which.
    """
    parts = []
    for row, is_new in enumerate(new):
        old = np.ones(columns.length, np.bool_) if hidden is None else ~hidden[row]
        if columns.real is not None:
            old = old[columns.real[row]]
        block = pairs[row][is_new][:, is_new]
        parts.append(np.concatenate([np.broadcast_to(old, (len(block), len(old))), block], 1))
    most = max(part.shape[1] for part in parts)
    out = np.zeros((sum(map(len, parts)), most), np.bool_)
    at = 0
    for part in parts:
        out[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    return out
