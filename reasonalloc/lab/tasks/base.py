"""What a task is, and one question of it to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reasonalloc.fingerprint import digest
from reasonalloc.lab.problems import Problem

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."  # as DeepSeek-R1's card asks


@dataclass(frozen=True)
class Item:
    """prompt: the user's turn, instructions included. answers: what the boxes of the chain must hold, in order.

    group: the part of the task that it belongs to, for results by group ("" where there are no parts). asked: whose
    answers they are, for a chain that does not keep the order (`grading.grade`). chain: a worked answer, where the task
    makes its problems and writes one ("" elsewhere).
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    group: str = ""
    asked: tuple[str, ...] = ()
    chain: str = ""

    @property
    def hash(self) -> str:
        """Of what is asked and what is right."""
        return digest([self.prompt, self.answers])


@dataclass(frozen=True)
class Choice:
    """Which items of a task: `count`, or a share of them (1: all), after a shuffle by `seed`; settings: of a task that
    makes its problems, None for its own grid."""

    count: int | None = None
    fraction: float = 1.0
    seed: int = 0
    settings: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Task:
    """prompts: (count, seed), for a wave; a larger count begins with the same ones. items: what is graded; None where
    there are no answers to compare with. made: problems are made to order, so there is no share of them, and settings
    say how. shipped: they come with this package. transfers: `ablate transfer` takes its wave."""

    name: str
    prompts: Callable[[int, int], list[Problem]]
    items: Callable[[Choice], list[Item]] | None = None
    made: bool = False
    shipped: bool = True
    transfers: bool = True


def items_of(problems: Sequence[Problem], choice: Choice, name: str) -> list[Item]:
    """Of a dataset's problems, which are in the order of the choice's seed."""
    every = [
        Item(x.id, f"{x.problem}\n\n{INSTRUCTION}", (x.answer,), f"level {x.level}" if x.level else "")
        for x in problems
    ]
    if choice.count is not None and choice.count > len(every):
        raise ValueError(f"{name} has {len(every)} problems, asked for {choice.count}")
    return every[: choice.count if choice.count is not None else max(1, round(choice.fraction * len(every)))]
