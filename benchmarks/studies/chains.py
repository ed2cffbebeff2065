"""Scores of committed chains and what is computed from them, with NumPy alone; the unit is the problem."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """The chains of a folder of results, packed or not."""
    packed, plain = folder / "generations.jsonl.gz", folder / "generations.jsonl"
    text = gzip.decompress(packed.read_bytes()).decode() if packed.is_file() else plain.read_text(encoding="utf-8")
    yield from map(json.loads, text.splitlines())


def score(record: dict[str, Any]) -> float:
    """Share of a chain's answers that are right, by the first box."""
    return float(np.mean(record["right"]))


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

    def __str__(self) -> str:
        return f"{self.mean:+6.1%} [{self.low:+.1%}, {self.high:+.1%}]  p {self.p:.2g}"


def of_differences(values: np.ndarray, rng: np.random.Generator) -> Difference:
    """values: a difference a problem."""
    return Difference(float(values.mean()), *map(float, interval(values, rng)), p_value(values, rng))


def compare(ours: dict[str, float], theirs: dict[str, float], rng: np.random.Generator) -> Difference:
    """Scores by problem, the first less the second."""
    return of_differences(np.array([ours[x] - theirs[x] for x in ours]), rng)


def adjusted(ps: list[float], family: int | None = None) -> list[float]:
    """Holm's p. family: comparisons that were planned, of which some may not have been made (all have)."""
    found, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = found[i] = max(least, min(1.0, ((family or len(ps)) - rank) * ps[i]))
    return found
