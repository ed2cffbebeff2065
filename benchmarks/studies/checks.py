"""How often chains check their work, and the comparisons that checks.yaml planned, from the chains alone:

    python benchmarks/studies/checks.py [FOLDER]

Imports nothing of reasonalloc.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from chains import Scores, compare, folder_given, mean_of, print_family, records

CHECK = "let me check that again"  # what *doubting* has a chain say after each question
QUESTIONS = 4  # of a problem
PLANNED = [("rlkv", "duo-60"), ("full", "rlkv"), ("rlkv", "R-KV-kept-60")]
RLKV = ("seed0-60", "seed1-60")


Counts = dict[str, dict[str, int]]  # by cell and problem, which has one chain


def counts(folder: Path) -> Counts:
    """Checks of the chains of a folder."""
    found: Counts = {}
    for x in records(folder):
        found.setdefault(x["cell"], {})[x["item"]] = x["text"].count(CHECK)
    return found


def checks(found: Counts) -> dict[str, float]:
    """Mean number of checks of a cell's chains."""
    return {label: float(np.mean(list(x.values()))) for label, x in found.items()}


def shares(found: Counts) -> dict[str, Scores]:
    """Of each cell, and of RLKV's two seeds together, the share of a problem's questions that are checked."""
    each = {label: {item: min(1, n / QUESTIONS) for item, n in x.items()} for label, x in found.items()}
    return each | {"rlkv": mean_of([each[x] for x in RLKV])}


def main() -> None:
    found, rng = counts(folder_given("checks")), np.random.default_rng(1)
    for label, count in checks(found).items():
        print(f"  {label:20s} {count:.1f} checks a chain")
    score = shares(found)
    print(f"planned, share of questions checked, Holm over {len(PLANNED)}")
    print_family({f"{a} less {b}": compare(score[a], score[b], rng) for a, b in PLANNED})


if __name__ == "__main__":
    main()
