"""MATH-500, the problems that come with the package; data/README.md has source and licence."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Problem:
    """One problem with its final answer (no worked solution). level: 1 (easiest) to 5."""

    id: str
    problem: str
    answer: str
    subject: str
    level: int


@cache
def _all() -> tuple[Problem, ...]:
    text = (files("reasonalloc") / "data" / "math500.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return tuple(Problem(x["unique_id"], x["problem"], x["answer"], x["subject"], int(x["level"])) for x in rows)


def math500(count: int | None = None, seed: int | None = None) -> list[Problem]:
    """The first `count` problems of MATH-500, or with a seed that many drawn without replacement; None: all 500.

    A larger count with the same seed begins with the same problems. Raises ValueError for a count outside 1..500.
    """
    problems = list(_all())
    if count is not None and not 1 <= count <= len(problems):
        raise ValueError(f"MATH-500 has {len(problems)} problems, so count must lie between 1 and that, got {count}")
    if seed is not None:
        random.Random(seed).shuffle(problems)
    return problems[:count]


def find(name: str) -> Problem:
    """The problem with this number (0 to 499, its line in the file) or id; ValueError if there is none."""
    problems = _all()
    if name.isdecimal() and int(name) < len(problems):
        return problems[int(name)]
    for problem in problems:
        if name in (problem.id, problem.id.removesuffix(".json")):
            return problem
    raise ValueError(
        f"MATH-500 has no problem {name!r}: give 0 to {len(problems) - 1} or an id like {problems[0].id!r}"
    )
