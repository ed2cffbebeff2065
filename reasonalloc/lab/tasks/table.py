"""Tasks by name."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from reasonalloc.lab.problems import Problem, aime24, math500
from reasonalloc.lab.tasks import ledger
from reasonalloc.lab.tasks.base import Item

TASKS = ("ledger", "math500", "aime24")
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."  # as DeepSeek-R1's card asks
HELD_OUT = "test"  # first word of the seeds that ledger-135m was not trained on


def items(
    task: str, *, count: int | None = None, fraction: float = 1.0, seed: int = 0, settings: Sequence[str] | None = None
) -> list[Item]:
    """The items of a task: a name of TASKS or a JSON-lines file with `problem` and `answer` (`id` if it has one).

    count: of a dataset, after a shuffle by `seed`; of "ledger", for each setting (8). fraction: share of a dataset
    instead. settings: of "ledger" only, names of its grid or like "questions=4,depth=3"; None: the whole grid.
    Raises ValueError for an unknown task or setting and for a file that is not of that form.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie above 0 and at most at 1, got {fraction}")
    if task == "ledger":
        if fraction != 1.0:
            raise ValueError("ledger makes as many problems as asked for: give a count instead of a fraction")
        return [x for name in dict.fromkeys(settings or ledger.GRID) for x in _ledger(name, count or 8, seed)]
    if settings:
        raise ValueError(f"settings are of the task ledger, not of {task!r}")
    if task == "math500":
        return _problems(math500(None, seed), count, fraction)
    if task == "aime24":
        return _problems(aime24(None, seed), count, fraction)
    if task.endswith(".jsonl"):
        every = _file(Path(task))
        random.Random(seed).shuffle(every)
        return _cut(every, count, fraction, task)
    raise ValueError(f"task {task!r} is unknown; there are {', '.join(TASKS)} and FILE.jsonl")


def dials(setting: str) -> ledger.Dials:
    """A name of ledger's grid, or "name=value,..." of its dials (the rest as in ledger.Dials)."""
    if setting in ledger.GRID:
        return ledger.GRID[setting]
    known = [f.name for f in fields(ledger.Dials)]
    values: dict[str, int] = {}
    for part in setting.split(","):
        name, sign, value = part.strip().partition("=")
        if not sign or name not in known or not value.isdecimal():
            raise ValueError(
                f"setting {setting!r} is none of {', '.join(ledger.GRID)} and not like 'questions=4,depth=3' (of"
                f" {', '.join(known)})"
            )
        values[name] = int(value)
    return ledger.Dials(**values)


def _ledger(setting: str, count: int, seed: int) -> list[Item]:
    made = ledger.problems(count, f"{HELD_OUT}/{seed}", dials(setting))
    return [
        Item(f"ledger/{setting}/{seed}/{i}", x.prompt, tuple(map(str, x.answers)), setting, x.asked)
        for i, x in enumerate(made)
    ]


def _problems(problems: Sequence[Problem], count: int | None, fraction: float) -> list[Item]:
    every = [
        Item(x.id, f"{x.problem}\n\n{INSTRUCTION}", (x.answer,), f"level {x.level}" if x.level else "")
        for x in problems
    ]
    return _cut(every, count, fraction, "the task")


def _cut(every: list[Item], count: int | None, fraction: float, name: str) -> list[Item]:
    if count is not None and count > len(every):
        raise ValueError(f"{name} has {len(every)} problems, asked for {count}")
    return every[: count if count is not None else max(1, round(fraction * len(every)))]


def _file(path: Path) -> list[Item]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            problem, answer = row["problem"], row["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: expected an object with 'problem' and 'answer' ({error!r})") from error
        if not isinstance(problem, str) or not isinstance(answer, (str, int, float)):
            raise ValueError(f"{path}:{number}: 'problem' must be a text and 'answer' a text or number")
        name = str(row.get("id", row.get("unique_id", number)))
        found.append(Item(name, f"{problem}\n\n{INSTRUCTION}", (str(answer),)))
    if not found:
        raise ValueError(f"{path} has no problem")
    if len({x.id for x in found}) < len(found):
        raise ValueError(f"{path}: two problems have the same id")
    return found
