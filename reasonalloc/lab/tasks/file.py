"""A task of the user's own: a JSON-lines file with `problem` and `answer` (`id` if it has one)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from reasonalloc.fields import build
from reasonalloc.files import json_lines
from reasonalloc.lab.problems import Problem
from reasonalloc.lab.tasks.base import Choice, Item, items_of


@dataclass(frozen=True)
class _Line:
    problem: str
    answer: str | int | float
    id: str | int | None = None
    unique_id: str | int | None = None


def items(path: str, choice: Choice) -> list[Item]:
    """Raises ValueError naming the line that is of another form, and for no problem or two of one id."""
    every = []
    for where, row in json_lines(Path(path)):
        try:
            line = build(_Line, row, where, others=True)
        except ValueError as error:
            raise ValueError(f"{where}: expected an object with 'problem' and 'answer' ({error})") from error
        given = next((x for x in (line.id, line.unique_id) if x is not None), where.rpartition(":")[2])
        every.append(Problem(str(given), line.problem, str(line.answer), "", 0))
    if not every:
        raise ValueError(f"{path} has no problem")
    if len({x.id for x in every}) < len(every):
        raise ValueError(f"{path}: two problems have the same id")
    random.Random(choice.seed).shuffle(every)
    return items_of(every, choice, path)
