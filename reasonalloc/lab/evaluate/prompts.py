"""Prompts of the tasks on which waves are compared."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib.resources import files

from reasonalloc.lab.problems import Problem, aime24, drawn, math500
from reasonalloc.lab.tasks import ledger

TITLE = "The Almanac of Marlow Reach"


def prompts(task: str, count: int, seed: int = 0) -> list[Problem]:
    """`count` prompts of a task of `TASKS`, drawn by the seed; a larger count begins with the same ones.

    Raises ValueError for a task that does not exist or a count that it does not have.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return TASKS[task](count, seed)


def _ledger(count: int, seed: int) -> list[Problem]:
    """Through the settings of the grid in turn."""
    dials = list(ledger.GRID.values())
    made = [ledger.problem(seed, i, dials[i % len(dials)]) for i in range(count)]
    return [Problem(x.id, x.prompt, ", ".join(map(str, x.answers)), "ledger", 0) for x in made]


def _functions(count: int, seed: int) -> list[Problem]:
    start = "Complete this Python function.\n\n"
    return _drawn("functions", start, count, seed)


def _contests(count: int, seed: int) -> list[Problem]:
    start = "Solve this problem with a Python program that reads standard input and prints the answer.\n\n"
    return _drawn("contests", start, count, seed)


def _drawn(task: str, start: str, count: int, seed: int) -> list[Problem]:
    return drawn(
        task, [Problem(f"{task}/{x['id']}", start + x["prompt"], "", task, 0) for x in _rows(task)], count, seed
    )


def _document(count: int, seed: int) -> list[Problem]:
    """A text of twelve sections, in an order of its own for each prompt, with a question on one of them."""
    rows = _rows("document")
    asked = random.Random(f"document/{seed}").sample(rows, len(rows))
    made = []
    for i in range(count):
        order = random.Random(f"document/{seed}/{i}").sample(rows, len(rows))
        about = asked[i % len(asked)]
        text = "\n\n".join(f"{x['heading']}\n\n{x['text']}" for x in order)
        prompt = f"{TITLE}\n\n{text}\n\nAnswer from this text, with your reasons: {about['question']}"
        made.append(Problem(f"document/{seed}/{i}/{about['id']}", prompt, "", "document", 0))
    return made


def _rows(name: str) -> list[dict[str, str]]:
    text = (files("reasonalloc") / "data" / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


TASKS: dict[str, Callable[[int, int], list[Problem]]] = {
    "ledger": _ledger,
    "math500": math500,
    "aime24": aime24,
    "functions": _functions,
    "contests": _contests,
    "document": _document,
}
