"""Schedules: when a cache is cut, and what goes last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reasonalloc.policy.clock import Clocks, CommonClock
from reasonalloc.policy.registry import Part
from reasonalloc.policy.setting import flag, setting


@dataclass(frozen=True)
class Schedule(Part):
    """After the first step, then every `interval` tokens.

    window: newest tokens that always stay, whose queries score the others. keep_prompt: tokens of the prompt go last.
    sinks: so do the first tokens. whole_prompts: a prompt fed in chunks is cut only once it has ended.
    """

    interval: int = setting(128, 1, 2**31 - 1, whole=True)
    window: int = setting(8, 1, 4096, whole=True)
    keep_prompt: bool = flag(False)
    sinks: int = setting(0, 0, 2**31 - 1, whole=True)
    whole_prompts: bool = flag(False)

    kind: ClassVar[str] = "schedule"

    def steps_left(self, rows: int, length: int, since: int, tokens: int) -> int:
        """Tokens that may follow a step of `tokens` before the next cut: 0 for a cut right after it, -1 for none.

        length: tokens given before the step. since: of these, after the last cut. May raise ValueError for a step that
        cannot be; nothing has changed then.
        """
        return 0 if length == 0 else max(self.interval - since - tokens, 0)

    def clocks(self, rows: int, whole_prompts: bool) -> Clocks | CommonClock:
        """When rows are cut: each by its own count, unless a schedule has a `steps_left` of its own.

        whole_prompts: a prompt is cut only once it has ended.
        """
        if type(self).steps_left is Schedule.steps_left:
            return Clocks(rows, self.interval, whole_prompts or self.whole_prompts)
        return CommonClock(rows, self.steps_left)

    def protected(self, prompt: int) -> int:
        """Positions below this go last."""
        return max(prompt if self.keep_prompt else 0, self.sinks)
