"""The task "math500": MATH-500's problems, which come with the package."""

from __future__ import annotations

from reasonalloc.lab.problems import math500
from reasonalloc.lab.tasks.base import Choice, Item, Task, items_of


def _items(choice: Choice) -> list[Item]:
    return items_of(math500(None, choice.seed), choice, "math500")


TASK = Task("math500", math500, _items)
