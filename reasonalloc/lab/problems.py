"""MATH-500, which comes with the package (data/README.md has source and licence), and AIME 2024, which does not."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from reasonalloc.fields import build
from reasonalloc.files import cache_folder, json_lines, replace_text


@dataclass(frozen=True)
class Problem:
    """One problem with its final answer (no worked solution). level: 1 (easiest) to 5, 0 where none is known."""

    id: str
    problem: str
    answer: str
    subject: str
    level: int


AIME24_HUB = "HuggingFaceH4/aime_2024"


@cache
def _all() -> tuple[Problem, ...]:
    return _read(files("reasonalloc") / "data" / "math500.jsonl")


@dataclass(frozen=True)
class _Line:
    """A line of a file of problems. answer: a text or number. level: a number or its digits."""

    unique_id: str
    problem: str
    answer: str | int | float
    subject: str = ""
    level: int | str = 0


def _read(path: Path | Traversable) -> tuple[Problem, ...]:
    found = []
    for where, row in json_lines(path):
        x = build(_Line, row, where, others=True)
        if not str(x.level).isdecimal():
            raise ValueError(f"{where}: level must be a whole number, got {x.level!r}")
        found.append(Problem(x.unique_id, x.problem, str(x.answer), x.subject, int(x.level)))
    return tuple(found)


def math500(count: int | None = None, seed: int | None = None) -> list[Problem]:
    """The first `count` problems of MATH-500, or with a seed that many drawn without replacement; None: all 500.

    A larger count with the same seed begins with the same problems. Raises ValueError for a count outside 1..500.
    """
    return drawn("MATH-500", _all(), count, seed)


def aime24(count: int | None = None, seed: int | None = None) -> list[Problem]:
    """The same of AIME 2024's 30 problems.

    They are not ours to ship. Read from aime24.jsonl (fields unique_id, problem, answer) in the folder
    $REASONALLOC_DATA, else in ~/.cache/reasonalloc/data; else fetched once from the Hub by `datasets` and kept there.
    Raises ValueError, saying so, where there is neither file nor Hub.
    """
    return drawn("AIME 2024", _aime24(_aime24_file()), count, seed)


def drawn(name: str, every: Sequence[Problem], count: int | None, seed: int | None) -> list[Problem]:
    """The first `count` of them (None: all), after a shuffle if there is a seed. name: what the error calls them."""
    problems = list(every)
    if count is not None and not 1 <= count <= len(problems):
        raise ValueError(f"{name} has {len(problems)} problems, so count must lie between 1 and that, got {count}")
    if seed is not None:
        random.Random(seed).shuffle(problems)
    return problems[:count]


def _aime24_file() -> Path:
    folder = os.environ.get("REASONALLOC_DATA")
    if folder and (Path(folder) / "aime24.jsonl").is_file():
        return Path(folder) / "aime24.jsonl"
    kept = cache_folder("data") / "aime24.jsonl"
    if not kept.is_file():
        _fetch_aime24(kept)
    return kept


@cache
def _aime24(path: Path) -> tuple[Problem, ...]:
    try:
        return _read(path)
    except ValueError as error:
        raise ValueError(f"{path} must have unique_id, problem and answer in each line ({error})") from error


def _fetch_aime24(path: Path) -> None:
    where = f"put aime24.jsonl (unique_id, problem, answer) into the folder $REASONALLOC_DATA or at {path}"
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ValueError(f"AIME 2024 does not come with this package: pip install datasets, or {where}") from error
    try:
        rows = load_dataset(AIME24_HUB, split="train")
    except Exception as error:  # whatever stands between us and the Hub
        raise ValueError(f"AIME 2024 cannot be fetched from the Hub ({error!r}): {where}") from error
    lines = [{"unique_id": f"aime24/{x['id']}", "problem": x["problem"], "answer": str(x["answer"])} for x in rows]
    replace_text(path, "".join(json.dumps(x) + "\n" for x in lines))


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
