"""One question to a model, whatever task it is from."""

from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.policy.wave import digest


@dataclass(frozen=True)
class Item:
    """prompt: the user's turn, instructions included. answers: what the boxes of the chain must hold, in order.

    group: the part of the task that it belongs to, for results by group ("" where there are no parts). asked: whose
    answers they are, for a chain that does not keep the order (`grading.grade`).
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    group: str = ""
    asked: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Of what is asked and what is right."""
        return digest([self.prompt, self.answers])
