"""The task "ledger" as it is asked: settings of the generator's dials by name."""

from __future__ import annotations

from dataclasses import fields

from reasonalloc.lab.problems import Problem
from reasonalloc.lab.tasks import ledger
from reasonalloc.lab.tasks.base import Choice, Item, Task

HELD_OUT = "test"  # first word of the seeds that ledger-135m was not trained on


def dials(setting: str) -> ledger.Dials:
    """A name of ledger's grid, or "name=value,..." of its dials (the rest as in ledger.Dials)."""
    if setting in ledger.GRID:
        return ledger.GRID[setting]
    names = [f.name for f in fields(ledger.Dials)]
    values: dict[str, int] = {}
    for part in setting.split(","):
        name, sign, value = part.strip().partition("=")
        if not sign or name not in names or not value.isdecimal() or len(value) > 9:
            raise ValueError(
                f"setting {setting!r} is none of {', '.join(ledger.GRID)} and not like 'questions=4,depth=3' (of"
                f" {', '.join(names)})"
            )
        values[name] = int(value)
    return ledger.Dials(**values)


def _items(choice: Choice) -> list[Item]:
    settings = dict.fromkeys(choice.settings or ledger.GRID)
    return [x for setting in settings for x in _of(setting, choice.count or 8, choice.seed)]


def _of(setting: str, count: int, seed: int) -> list[Item]:
    made = ledger.problems(count, f"{HELD_OUT}/{seed}", dials(setting))
    return [
        Item(f"ledger/{setting}/{seed}/{i}", x.prompt, tuple(map(str, x.answers)), setting, x.asked, x.chain)
        for i, x in enumerate(made)
    ]


def _prompts(count: int, seed: int) -> list[Problem]:
    """Through the settings of the grid in turn."""
    grid = list(ledger.GRID.values())
    made = [ledger.problem(seed, i, grid[i % len(grid)]) for i in range(count)]
    return [Problem(x.id, x.prompt, ", ".join(map(str, x.answers)), "ledger", 0) for x in made]


TASK = Task("ledger", _prompts, _items, made=True)
