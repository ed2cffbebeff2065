"""The task "functions": Python functions to complete. Its chains are not run, so it has no items."""

from __future__ import annotations

from reasonalloc.lab.problems import Problem, drawn
from reasonalloc.lab.tasks.base import Task
from reasonalloc.lab.tasks.texts import rows

_START = "Complete this Python function.\n\n"


def _prompts(count: int, seed: int) -> list[Problem]:
    every = [Problem(f"functions/{x['id']}", _START + x["prompt"], "", "functions", 0) for x in rows("functions")]
    return drawn("functions", every, count, seed)


TASK = Task("functions", _prompts)
