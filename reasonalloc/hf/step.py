"""A forward pass: whose turn it is, what is due after it, and which of its tokens are real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class NewTokens:
    """Which of a pass's tokens are real. All attributes are None where all of them are.

    real: [B, T] flags in host memory. begin: [B + 1] first token of each row in index, the places of real tokens.
    """

    real: torch.Tensor | None = None
    begin: npt.NDArray[np.int64] | None = None
    index: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, real: torch.Tensor) -> NewTokens:
        flags = real.numpy()
        begin = np.zeros(len(flags) + 1, np.int64)
        np.cumsum(flags.sum(1), out=begin[1:])
        return cls(real, begin, np.ascontiguousarray(np.nonzero(flags)[1], np.int64))


_ALL = NewTokens()


class Step:
    """Owner of all that steers a cache through its forward passes, one after the other.

    turns: indices of the layers that store keys, in the order in which a forward pass comes to them. announces: whether
    layers are told of the next cut beforehand. whole_masks: masks cover cached tokens too, not the new ones alone.

    tokens: new ones of this pass, padding included. prefill: it belongs to the prompt. due: a cut comes after it.
    cut_in: [B] passes of one token that follow before a row's next cut, negative where layers need not know. count:
    passes that are complete. uncut: newest tokens that came after the last eviction. closed: why there can be no pass,
    or None.
    """

    def __init__(self, turns: Sequence[int], announces: bool, whole_masks: bool = False) -> None:
        self.turns, self.announces, self.whole_masks = turns, announces, whole_masks
        self.rows = self.tokens = self.count = self.uncut = 0
        self.prefill = self.due = False
        self.cut_in: Any = None
        self.closed: str | None = None
        self._turn = 0
        self.since = 0  # tokens since the last time that a cut was due
        self._mask: tuple[torch.Tensor | None, NewTokens] = (None, _ALL)

    @property
    def is_first_turn(self) -> bool:
        return self._turn == 0

    def check_open(self) -> None:
        if self.closed:
            raise RuntimeError(f"the cache is closed after an error ({self.closed}); call reset() to use it again")

    def close(self, error: BaseException) -> None:
        self.closed = f"{type(error).__name__}: {error}"

    def check_turn(self, layer: int, reason: str = "") -> None:
        """Closes the cache and raises RuntimeError if it is another layer's turn. reason: why that may be."""
        self.check_open()
        if layer != self.turns[self._turn]:
            self.closed = "a forward pass was interrupted between layers" + reason
            self.check_open()

    def check_between(self) -> None:
        """As `check_turn`, amid a forward pass."""
        self.check_open()
        if self._turn:
            self.closed = "a forward pass was interrupted between layers"
            self.check_open()

    def begin(self, rows: int, tokens: int, first: bool, ahead: int) -> None:
        """A forward pass over so many new tokens a row, the first on an empty cache or not.

        ahead: passes of one token that follow before the next cut: 0, it comes after this one; negative, none is near.
        """
        self._mask = (None, _ALL)  # one that failed may have left its mask
        self.rows, self.tokens = rows, tokens
        # The first pass is the prefill even if it is of one token: in a batch that row would be beside longer ones.
        self.prefill = first or (tokens > 1 and self.prefill)
        self.due = ahead == 0
        self.cut_in = np.full(rows, ahead if self.due or self.announces else -1)

    def new_tokens(self, mask: torch.Tensor | None, dense: bool) -> NewTokens:
        """Which of the new tokens are not padding.

        mask: [B, 1, T, n], whose last T columns are the new tokens. dense: attention takes the mask as it is, so any
        pattern may be in it; elsewhere it must be causal with padding (ValueError).
        """
        if mask is None:
            return _ALL
        if self._mask[0] is not mask:  # all layers of a pass are given one mask
            if mask.shape[-1] != self.tokens and not self.whole_masks:
                raise ValueError(
                    f"the attention mask covers {mask.shape[-1]} tokens, but {self.tokens} are new: masks over cached"
                    " tokens are not supported, since their heads hold different ones"
                )
            if mask.shape[1] != 1:
                raise ValueError(f"the attention mask {list(mask.shape)} is another one for each head")
            real = _real_tokens(mask, self.tokens, dense)
            self._mask = (mask, _ALL if real is None else NewTokens.of(real))
        return self._mask[1]

    def leave(self) -> bool:
        """A layer is done; whether it was the last one."""
        self._turn = (self._turn + 1) % len(self.turns)
        return not self._turn

    def end(self, evicted: bool, padded: bool) -> None:
        """The forward pass is complete. padded: some of its tokens were padding."""
        self.since = 0 if self.due else self.since + self.tokens
        self.uncut = 0 if evicted or padded else self.uncut + self.tokens  # amid padding rows differ in what is newest
        self.count += 1
        self._mask = (None, _ALL)

    def crop(self, tokens: int) -> None:
        """The newest tokens were taken back."""
        self.since, self.uncut = max(0, self.since - tokens), self.uncut - tokens


def _real_tokens(mask: torch.Tensor, tokens: int, dense: bool) -> torch.Tensor | None:
    """[B, T] flags in host memory; None if all are real."""
    mask = mask[:, 0, :, mask.shape[-1] - tokens :]
    visible = mask if mask.dtype == torch.bool else mask == 0  # additive masks hold 0 where a token is seen
    real = visible[:, -1]
    if not dense:
        wanted = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril() & real[:, None, :]
        if not torch.equal(visible & real[:, :, None], wanted & real[:, :, None]):
            raise ValueError("only causal masks with padding are supported once the cache holds tokens")
    return None if bool(real.all()) else real.cpu().contiguous()
