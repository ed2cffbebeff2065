"""The task "contests": programming contests' problems. Its chains are not run, so it has no items."""

from __future__ import annotations

from reasonalloc.lab.problems import Problem, drawn
from reasonalloc.lab.tasks.base import Task
from reasonalloc.lab.tasks.texts import rows

_START = "Solve this problem with a Python program that reads standard input and prints the answer.\n\n"


def _prompts(count: int, seed: int) -> list[Problem]:
    every = [Problem(f"contests/{x['id']}", _START + x["prompt"], "", "contests", 0) for x in rows("contests")]
    return drawn("contests", every, count, seed)


TASK = Task("contests", _prompts)
