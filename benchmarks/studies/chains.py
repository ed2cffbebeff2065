"""Scores of committed chains and what is computed from them, with NumPy alone; the unit is the problem."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).parents[1] / "results"
Scores = dict[str, float]  # by problem


def folder_given(study: str) -> Path:
    """The command line's, or where the study's results are."""
    return Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / study


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """The chains of a folder of results, packed where there are no others: a packed file may be older."""
    packed, plain = folder / "generations.jsonl.gz", folder / "generations.jsonl"
    there = plain.is_file() and plain.stat().st_size
    data = plain.read_bytes() if there else gzip.decompress(packed.read_bytes())
    yield from (json.loads(line) for line in data.split(b"\n") if line)  # texts may hold Unicode's other line ends


def score(record: dict[str, Any]) -> float:
    """Share of a chain's answers that are right, by the first box."""
    return float(np.mean(record["right"]))


class Cell(NamedTuple):
    """The chains of a label: of a problem the mean score of its samples, of the rest the mean over the chains."""

    chains: int
    scores: Scores
    cut_off: float
    tokens: float
    bytes: float
    slots: float

    @property
    def right(self) -> float:
        return float(np.mean(list(self.scores.values())))

    def right_with_interval(self, rng: np.random.Generator) -> str:
        low, high = interval(np.array(list(self.scores.values())), rng)
        return f"{self.right:6.1%} [{low:.1%}, {high:.1%}]"


def cells_of(folder: Path) -> dict[str, Cell]:
    """By label, in the order of the file."""
    chains: dict[str, list[dict[str, Any]]] = {}
    for x in records(folder):
        chains.setdefault(x["cell"], []).append(x)
    return {label: _cell(each) for label, each in chains.items()}


def _cell(chains: list[dict[str, Any]]) -> Cell:
    scores: dict[str, list[float]] = {}
    for x in chains:
        scores.setdefault(x["item"], []).append(score(x))
    figures = np.mean([(x["finish"] == "length", x["tokens"], x["mean_bytes"], x["slots"]) for x in chains], 0)
    return Cell(len(chains), {item: float(np.mean(x)) for item, x in scores.items()}, *map(float, figures))


def mean_of(cells: list[Scores]) -> Scores:
    """Of several cells with the same problems, by problem."""
    return {item: float(np.mean([x[item] for x in cells])) for item in cells[0]}


def interval(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """95 % of 10,000 bootstraps of the mean."""
    return np.quantile(values[rng.integers(len(values), size=(10_000, len(values)))].mean(1), [0.025, 0.975])


def p_value(difference: np.ndarray, rng: np.random.Generator) -> float:
    """Two-sided, of 100,000 random signs of the problems' differences."""
    signs = rng.integers(2, size=(100_000, len(difference)), dtype=np.int8) * 2 - 1
    return (1 + int((np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).sum())) / (1 + len(signs))


class Difference(NamedTuple):
    """Mean over the problems, its 95 % interval, the p of the permutation test."""

    mean: float
    low: float
    high: float
    p: float

    def __neg__(self) -> Difference:
        return Difference(-self.mean, -self.high, -self.low, self.p)

    def __str__(self) -> str:
        return f"{self.mean:+6.1%} [{self.low:+.1%}, {self.high:+.1%}]  p {self.p:.2g}"


def of_differences(values: np.ndarray, rng: np.random.Generator) -> Difference:
    """values: a difference a problem."""
    return Difference(float(values.mean()), *map(float, interval(values, rng)), p_value(values, rng))


def compare(ours: Scores, theirs: Scores, rng: np.random.Generator) -> Difference:
    """Scores by problem, the first less the second."""
    return of_differences(np.array([ours[x] - theirs[x] for x in ours]), rng)


def adjusted(ps: list[float], family: int | None = None) -> list[float]:
    """Holm's p. family: comparisons that were planned, of which some may not have been made (all have)."""
    found, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = found[i] = max(least, min(1.0, ((family or len(ps)) - rank) * ps[i]))
    return found


def print_family(found: dict[str, Difference], family: int | None = None, width: int = 44) -> None:
    """A line for each comparison, by name, with Holm's p as `adjusted` has it."""
    for (name, x), holm in zip(found.items(), adjusted([x.p for x in found.values()], family), strict=True):
        print(f"  {name:{width}s} {x}, Holm {holm:.2g}")
