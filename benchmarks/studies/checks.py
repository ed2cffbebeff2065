"""How often chains check their work, and the comparisons that checks.yaml planned, from the chains alone:

    python benchmarks/studies/checks.py [FOLDER]

Imports nothing of reasonalloc.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from chains import Scores, compare, folder_given, print_family, records

CHECK = "let me check that again"  # what *doubting* has a chain say after each question
QUESTIONS = 4  # of a problem
PLANNED = [("rlkv", "duo-60"), ("full", "rlkv"), ("rlkv", "R-KV-kept-60")]
RLKV = ("seed0-60", "seed1-60")


def counts(folder: Path) -> dict[str, dict[str, int]]:
    """Checks of each cell's chains, by problem; a problem has one chain."""
    found: dict[str, dict[str, int]] = {}
    for x in records(folder):
        found.setdefault(x["cell"], {})[x["item"]] = x["text"].count(CHECK)
    return found


def checks(folder: Path) -> dict[str, float]:
    """Mean number of checks of a cell's chains."""
    return {label: float(np.mean(list(x.values()))) for label, x in counts(folder).items()}


def shares(folder: Path) -> dict[str, Scores]:
    """Of each cell, and of RLKV's two seeds together, the share of a problem's questions that are checked."""
    found = {label: {i: min(1, n / QUESTIONS) for i, n in x.items()} for label, x in counts(folder).items()}
    one, two = (found[x] for x in RLKV)
    return found | {"rlkv": {item: (one[item] + two[item]) / 2 for item in one}}


def main() -> None:
    folder, rng = folder_given("checks"), np.random.default_rng(1)
    for label, count in checks(folder).items():
        print(f"  {label:20s} {count:.1f} checks a chain")
    found = shares(folder)
    print(f"planned, share of questions checked, Holm over {len(PLANNED)}")
    print_family({f"{a} less {b}": compare(found[a], found[b], rng) for a, b in PLANNED})


if __name__ == "__main__":
    main()
