"""A scorer that keeps or evicts whole spans of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reasonalloc.policy.scorers import RKV, SCORERS, ScoreArguments
from reasonalloc.policy.setting import choice, setting


@SCORERS.enter("spans")
@dataclass(frozen=True)
class Spans(RKV):
    """R-KV's (arXiv 2505.24133), centred, shared by the tokens of a span, so that spans go whole.

    span: tokens of a span; positions 0 to span - 1 of a row are its first one. pool: "mean" or "max" of the scores of a
    span's tokens that a head still holds before the window. All have the same score then; of the span at the end of a
    head's budget the newest tokens stay. With span 1 it is "rkv-centred".

    Spans of a fixed length are no sentences. SkipKV (arXiv 2512.07993; code TTTTTTris/SkipKV) finds sentences by the
    punctuation among token ids, compares their mean hidden states of the last layer, and takes a penalty off R-KV's
    scores of those that repeat a later one; it also steers hidden states. A cache is shown neither token ids nor
    hidden states, so that this is not it: what they have in common is that tokens go together.
    """

    span: int = setting(16, 1, 2**31 - 1, whole=True)
    pool: str = choice("mean", "mean", "max")

    core: ClassVar[str] = "spans"

    def arguments(self, layer: int) -> ScoreArguments:
        average = self.pool == "mean"
        return ScoreArguments(self.core, self.alpha, self.threshold, self.kernel, average=average, span=self.span)
