"""The registry of tasks: a task is a file of this folder with a `TASK`, and an entry here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reasonalloc.lab.problems import Problem
from reasonalloc.lab.tasks import aime24, contests, document, file, functions, grid, math500, search
from reasonalloc.lab.tasks.base import Choice, Item, Task
from reasonalloc.lab.tasks.grid import HELD_OUT, dials
from reasonalloc.meant import meant

REGISTRY: dict[str, Task] = {
    x.TASK.name: x.TASK for x in (grid, math500, aime24, functions, contests, document, search)
}  # fmt: skip
TASKS = tuple(name for name, task in REGISTRY.items() if task.items is not None)  # whose chains can be graded

__all__ = ["HELD_OUT", "REGISTRY", "TASKS", "dials", "items", "other_items", "prompts"]


def items(
    task: str, *, count: int | None = None, fraction: float = 1.0, seed: int = 0, settings: Sequence[str] | None = None
) -> list[Item]:
    """The items of a task: a name of TASKS or a JSON-lines file with `problem` and `answer` (`id` if it has one).

    count: of a dataset, after a shuffle by `seed`; of "ledger" and "search", for each setting (8). fraction: share of
    a dataset instead. settings: of these two, names of their grids or like "questions=4,depth=3" and
    "numbers=9,lines=40-80"; None: the whole grid.
    Raises ValueError for an unknown task or setting and for a file that is not of that form.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie above 0 and at most at 1, got {fraction}")
    if count is not None and count < 1:
        raise ValueError(f"the number of problems must be at least 1, got {count}")
    if settings is not None and not settings:
        raise ValueError("settings must name at least one, got none: leave them out for all")
    choice = Choice(count, fraction, seed, tuple(settings) if settings else None)
    entry = REGISTRY.get(task)
    if entry is not None and entry.made and fraction != 1.0:
        raise ValueError(f"{task} makes as many problems as asked for: give a count instead of a fraction")
    if settings and not (entry is not None and entry.made):
        raise ValueError(f"settings are of the tasks ledger and search, not of {task!r}")
    if entry is not None and entry.items is not None:
        return entry.items(choice)
    if task.endswith(".jsonl"):
        if not Path(task).exists():
            raise FileNotFoundError(
                f"the task's file {task!r} does not exist; tasks with a name are {', '.join(TASKS)}"
            )
        return file.items(task, choice)
    hint = meant(task.lower(), TASKS)
    raise ValueError(f"task {task!r} is unknown{hint}; there are {', '.join(TASKS)} and FILE.jsonl")


def other_items(
    task: str, asked: Sequence[Item], *, count: int | None, seed: int, settings: Sequence[str] | None = None
) -> list[Item]:
    """Items of the task by another seed, and none of those asked as long as the task has others.

    count, settings: as of `items`, but for a dataset None stands for as many as are asked.
    """
    made = task in REGISTRY and REGISTRY[task].made
    drawn = items(task, count=count if made else None, seed=seed, settings=settings)
    used = {x.hash for x in asked}
    drawn.sort(key=lambda x: x.hash in used)  # the sort is stable
    return drawn if made else drawn[: count or len(asked)]


def prompts(task: str, count: int, seed: int = 0) -> list[Problem]:
    """`count` prompts of a task of `REGISTRY`, drawn by the seed; a larger count begins with the same ones.

    Raises ValueError for a task that does not exist or a count that it does not have.
    """
    if task not in REGISTRY:
        raise ValueError(f"task must be one of {', '.join(REGISTRY)}, got {task!r}")
    return REGISTRY[task].prompts(count, seed)
