"""A forward pass: whose turn it is, what is due after it, and which of its tokens are real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from reasonalloc.hf.columns import ALL, Columns, Flags, Ints, NewTokens, visible_positions
from reasonalloc.policy.clock import Clocks, ClockState, CommonClock, Segment


class Part(NamedTuple):
    """A part of a pass: the tokens that are stored and attended, and what is due then.

    due: [B] rows that are cut after it; any_due: whether there are any. cut_in: [B] passes of one token that follow
    before a row's next cut, None where layers need not know.
    """

    new: NewTokens
    due: Flags
    any_due: bool
    cut_in: Ints | None

    def by_rows(self, columns: int, most: int) -> list[Part]:
        """The same, at most so many rows at a time. columns: of the pass."""
        rows = len(self.due)
        if rows <= most:
            return [self]
        fresh, done, parts = self.new.counts(rows, columns), np.zeros(rows, np.int64), []
        for first in range(0, rows, most):
            now = (np.arange(rows) >= first) & (np.arange(rows) < first + most)
            new, due = self.new.part(rows, columns, done, np.where(now, fresh, 0)), self.due & now
            parts.append(Part(new, due, bool(due.any()), self.cut_in))
        return parts


@dataclass(frozen=True)
class StepState:
    """What a step has to remember between two passes, but for the columns: attributes as of `Step`, `clock` as of its
    clocks."""

    count: int
    uncut: int
    prefill: bool
    clock: ClockState | None

    def __post_init__(self) -> None:
        if min(self.count, self.uncut) < 0:
            raise ValueError(f"counts of passes and tokens are numbers from 0, got {self.count} and {self.uncut}")


class Step:
    """Owner of all that steers a cache through its forward passes, one after the other.

    turns: indices of the layers that store keys, in the order in which a forward pass comes to them. announces: whether
    layers learn of the next cut beforehand. whole_masks: masks cover cached tokens too, not the new ones alone.
    gathers: layers take in what each query attends to.

    clocks: when rows are cut, None for never. columns: which columns were tokens. tokens: columns of this pass.
    prefill: it belongs to the prompt. count: passes that are complete. uncut: newest columns that came after the last
    eviction. cropped: tokens were taken back, and none has come since. begun: a pass is under way, its first layer
    perhaps not done. closed: why there can be no pass, or None.
    """

    def __init__(self, turns: Sequence[int], announces: bool, whole_masks: bool = False, gathers: bool = False) -> None:
        self.turns, self.announces, self.whole_masks, self.gathers = turns, announces, whole_masks, gathers
        self.rows = self.tokens = self.count = self.uncut = 0
        self.prefill = self.cropped = self.begun = False
        self.closed: str | None = None
        self.clocks: Clocks | CommonClock | None = None
        self.columns = Columns()
        self._turn = 0
        self._columns: Ints = np.zeros(0, np.int64)  # [rows] `tokens` of each
        self._ends_prompt = False
        self._flags: torch.Tensor | None = None  # the pass's mask [B, columns], where transformers was given one
        self._parts: list[Part] | None = None
        self._planned: Clocks | CommonClock | None = None  # the clocks after this pass
        self._real: Flags | None = None

    @property
    def is_first_turn(self) -> bool:
        """No layer has had its turn in this pass."""
        return self._turn == 0

    @property
    def prompt(self) -> Flags | None:
        """[rows] rows that are still in their prompt, where layers need to know; None: none of them."""
        return np.ones(self.rows, np.bool_) if self.gathers and self.prefill else None

    @property
    def state(self) -> StepState:
        """Between two passes, for a file; ValueError for a schedule that has clocks of its own."""
        if isinstance(self.clocks, CommonClock):
            raise ValueError("the cache has a schedule with a steps_left of its own, whose count no file can hold")
        return StepState(self.count, self.uncut, self.prefill, None if self.clocks is None else self.clocks.state)

    def restore(self, state: StepState, clocks: Clocks | CommonClock | None, columns: Columns) -> None:
        """Goes on from a state. clocks: fresh ones; ValueError if the state does not fit them."""
        if (state.clock is None) != (clocks is None) or isinstance(clocks, CommonClock):
            raise ValueError(f"its state of clocks is {state.clock}, here the clocks are {type(clocks).__name__}")
        if state.clock is not None and clocks is not None:
            clocks.restore(state.clock)
        self.count, self.uncut, self.prefill = state.count, state.uncut, state.prefill
        self.clocks, self.columns = clocks, columns

    def check_open(self) -> None:
        """RuntimeError if the cache is closed."""
        if self.closed:
            raise RuntimeError(f"the cache is closed after an error ({self.closed}); call reset() to use it again")

    def close(self, error: BaseException) -> None:
        """An error has left layers that do not belong together."""
        self.closed = f"{type(error).__name__}: {error}"

    def is_turn_of(self, layer: int) -> bool:
        """Whether the pass has come to a layer."""
        return layer == self.turns[self._turn]

    def refuse_turn(self, reason: str) -> None:
        """Closes the cache and raises RuntimeError: it was another layer's turn. reason: why that may be."""
        self.check_open()
        self.closed = "a forward pass was interrupted between layers" + reason
        self.check_open()

    def check_between(self) -> None:
        """As `check_turn`, amid a forward pass."""
        self.check_open()
        if self._turn:
            self.closed = "a forward pass was interrupted between layers"
            self.check_open()

    def begin(self, rows: int, tokens: int, in_prompt: bool, ends_prompt: bool, flags: torch.Tensor | None) -> None:
        """A forward pass over so many columns.

        in_prompt: it may belong to the prompt, if all before it did. ends_prompt: no more of the prompt follows, where
        that is known. flags: the mask [B, all columns].
        """
        self._parts, self._planned, self._real = None, None, None  # one that failed may have left some
        self.begun = True
        first = not self.columns.length
        if (rows, tokens) != (self.rows, self.tokens):
            self._columns = np.full(rows, tokens, np.int64)
        self.rows, self.tokens, self._ends_prompt = rows, tokens, ends_prompt
        # The first pass is the prefill even if it is of one token: in a batch that row would be beside longer ones.
        self.prefill = first or (in_prompt and self.prefill)
        fits = flags is not None and flags.ndim == 2 and tuple(flags.shape) == (rows, self.columns.length + tokens)
        self._flags = flags if fits else None

    def parts(self, mask: torch.Tensor | None, dense: bool) -> list[Part]:
        """The parts of the pass; all its layers are given one mask, which is looked at once.

        mask: [B, 1, T, n], whose last T columns are the new tokens. dense: attention takes the mask as it is, so any
        pattern may be in it. Elsewhere it may hide what it likes, but not show what comes later (ValueError).
        """
        if self._parts is None:
            self._parts = self._plan(self._new_tokens(mask, dense))
        return self._parts

    def _plan(self, new: NewTokens) -> list[Part]:
        self._real = new.real
        if self.clocks is None:
            return [Part(new, np.zeros(self.rows, np.bool_), False, None)]
        fresh = self._columns if new.begin is None else np.diff(new.begin)
        self._planned = self.clocks.copy()
        segments = self._planned.plan(fresh, self.tokens, self._ends_prompt)
        if len(segments) == 1:
            return [self._part(new, segments[0])]
        done, parts = np.zeros(self.rows, np.int64), []
        for segment in segments:
            parts.append(self._part(new.part(self.rows, self.tokens, done, segment.tokens), segment))
            done = done + segment.tokens
        return parts

    def _part(self, new: NewTokens, segment: Segment) -> Part:
        return Part(new, segment.due, segment.any_due, segment.cut_in if self.announces else None)

    def _new_tokens(self, mask: torch.Tensor | None, dense: bool) -> NewTokens:
        if mask is None and self._flags is None:
            return ALL
        if mask is not None and mask.shape[-1] != self.tokens and not self.whole_masks:
            raise ValueError(
                f"the attention mask covers {mask.shape[-1]} columns, but {self.tokens} are new: masks [batch, 1, new,"
                " all] over cached tokens are not supported, those [batch, all] are"
            )
        if mask is not None and mask.shape[1] != 1:
            raise ValueError(f"the attention mask {list(mask.shape)} is another one for each head")
        visible = None if mask is None else _visible_pairs(mask, self.tokens, self.rows)
        hidden = None
        if self._flags is not None:
            shown = self._flags.cpu().numpy() != 0
            hidden = self.columns.hidden(shown[:, : self.columns.length])
            real = shown[:, self.columns.length :]
        elif visible is None:
            return ALL
        else:
            real = visible.any(1)  # a token that none sees, itself neither, is padding
        if dense and not self.gathers:
            return ALL if real.all() else NewTokens.of(real)
        causal = np.tril(np.ones((self.tokens, self.tokens), np.bool_))
        pairs = real[:, :, None] & real[:, None, :]
        visible = causal & pairs if visible is None else visible & pairs
        if dense:
            visible &= causal  # statistics are of earlier tokens
        elif (visible & ~causal).any():
            raise ValueError("once the cache holds tokens, an attention mask may not show tokens that come later")
        if hidden is None and np.array_equal(visible, causal & pairs):
            return ALL if real.all() else NewTokens.of(real)
        return NewTokens.of(real, visible_positions(self.columns, hidden, real, visible))

    def leave(self) -> bool:
        """A layer is done; whether it was the last one."""
        self._turn = (self._turn + 1) % len(self.turns)
        return not self._turn

    def end(self, evicted: bool) -> None:
        """The forward pass is complete."""
        self.columns.append(self.rows, self.tokens, self._real)
        self.clocks = self._planned if self._planned is not None else self.clocks
        self.uncut = 0 if evicted else self.uncut + self.tokens
        self.prefill, self.cropped, self.begun = self.prefill and not self._ends_prompt, False, False
        self.count += 1
        self._parts, self._planned, self._flags, self._real = None, None, None, None

    def crop(self, tokens: int) -> None:
        """The newest tokens were taken back."""
        if self.clocks is not None:
            self.clocks = self.clocks.copy()
            self.clocks.crop(np.full(self.rows, tokens, np.int64))
        self.columns.crop(tokens)
        self.uncut -= tokens
        self.cropped = self.columns.length > 0  # else all begins anew

    def move_rows(self, source: Ints) -> None:
        """Row i becomes row source[i]."""
        if self.clocks is not None:
            self.clocks.move_rows(source)
        self.columns.move_rows(source)
        self.rows, self.tokens = len(source), 0


def _visible_pairs(mask: torch.Tensor, tokens: int, rows: int) -> Flags:
    """[B, T, T] which new tokens see which; additive masks hold 0 where a token is visible."""
    mask = mask[:, 0, :, mask.shape[-1] - tokens :]
    visible: Flags = (mask if mask.dtype == torch.bool else mask == 0).cpu().numpy()
    return np.broadcast_to(visible, (rows, tokens, tokens))
