"""The task "aime24": AIME 2024's problems, which the user fetches."""

from __future__ import annotations

from reasonalloc.lab.problems import aime24
from reasonalloc.lab.tasks.base import Choice, Item, Task, items_of


def _items(choice: Choice) -> list[Item]:
    return items_of(aime24(None, choice.seed), choice, "aime24")


TASK = Task("aime24", aime24, _items, shipped=False)
