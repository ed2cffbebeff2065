"""Intervals and paired tests of scores by problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
PERMUTATIONS = 100_000
_EXACT, _AT_ONCE = 16, 10_000
CONFIDENCE = 0.95
INSTALL = "pip install '.[evaluate]' in a checkout of reasonalloc"


@dataclass(frozen=True)
class Measure:
    """Mean over problems with its 95 % interval, a bootstrap's unless said (None where there is none)."""

    mean: float
    low: float | None = None
    high: float | None = None

    def text(self, spec: str) -> str:
        if self.low is None:
            return format(self.mean, spec)
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def picks(count: int, seed: int) -> npt.NDArray[np.int64]:
    """[resamples, count] indices; with the same picks intervals of several measures stay paired."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def bootstrap(values: Sequence[float], chosen: npt.NDArray[np.int64]) -> Measure:
    """Percentile interval of the mean."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Measure(float(x.mean()))
    low, high = np.quantile(x[chosen].mean(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Measure(float(x.mean()), float(low), float(high))


@dataclass(frozen=True)
class Paired:
    """One method against another on the same problems.

    difference: mean of score less the other's, its interval the bootstrap's over problems. wins, losses: problems where
    the mean score over samples is higher, lower. p: two-sided permutation test on these problem means. holm: p adjusted
    for all comparisons of the table with that one (Holm). sign: p of the exact sign test. family: number of these
    comparisons.
    """

    against: str
    difference: Measure
    wins: int
    losses: int
    p: float
    sign: float
    holm: float
    family: int = 1


def available() -> None:
    """ModuleNotFoundError, with the command that helps, where scipy is missing."""
    _binomtest()


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test; 1 where no problem differs."""
    if not wins + losses:
        return 1.0
    return float(_binomtest()(min(wins, losses), wins + losses, 0.5).pvalue)


def permutation_test(difference: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the paired permutation test: of all ways to turn the signs of the problems' differences, the share
    whose mean is as far from 0. Exact for up to 16 problems, else PERMUTATIONS random ways, whose least p is about
    1 / PERMUTATIONS. 1 where no problem differs."""
    x = np.asarray(difference, dtype=np.float64)
    x = x[np.abs(x) > 1e-9]  # the others change nothing, whatever their sign
    if not len(x):
        return 1.0
    if len(x) <= _EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(x))[:, None] >> np.arange(len(x))) & 1)
        means = np.abs(signs @ x)
        return float((means >= abs(x.sum()) - 1e-9).mean())
    rng = np.random.default_rng(seed)
    far = 0
    for _ in range(PERMUTATIONS // _AT_ONCE):
        signs = rng.integers(2, size=(_AT_ONCE, len(x)), dtype=np.int8) * 2 - 1
        far += int((np.abs(signs @ x) >= abs(x.sum()) - 1e-9).sum())
    return (far + 1) / (PERMUTATIONS + 1)


def holm(ps: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's adjusted p values, in the order given: they bound the chance of any wrong claim among them. family: number
    that were planned, where only these were made: whatever the others are, p is not less."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, ((family or len(ps)) - rank) * ps[i]))
        adjusted[i] = least
    return adjusted


def proportion_interval(right: float, count: int) -> tuple[float, float]:
    """Clopper-Pearson's 95 % interval of a share; unlike a bootstrap's it has a width where all or none are right.

    right: may be fractional (scores are shares); the interval then reaches from that of the whole number below it to
    that of the one above.
    """
    test = _binomtest()
    low = test(math.floor(right + 1e-9), count).proportion_ci(CONFIDENCE).low
    high = test(math.ceil(right - 1e-9), count).proportion_ci(CONFIDENCE).high
    return float(low), float(high)


def proportion_mean(scores: Sequence[float], chosen: npt.NDArray[np.int64]) -> Measure:
    """Mean of scores from 0 to 1, one a problem.

    Its interval is the bootstrap's, but where all problems have the same score, whose bootstrap would have no width at
    all, Wilson's for a share of so many problems (as in `proportion_interval` for one that is no whole number of them).
    """
    if len(set(scores)) > 1:
        return bootstrap(scores, chosen)
    right, count, test = float(sum(scores)), len(scores), _binomtest()
    low = test(math.floor(right + 1e-9), count).proportion_ci(CONFIDENCE, method="wilson").low
    high = test(math.ceil(right - 1e-9), count).proportion_ci(CONFIDENCE, method="wilson").high
    return Measure(right / count, float(low), float(high))


def _binomtest() -> Any:
    try:
        from scipy.stats import binomtest
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"tests and intervals of shares need scipy: {INSTALL}") from error
    return binomtest


def paired(against: str, ours: Sequence[float], theirs: Sequence[float], chosen: npt.NDArray[np.int64]) -> Paired:
    """ours, theirs: scores of the same problems in the same order. It is the only comparison as yet (`adjusted`)."""
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    wins, losses = int((difference > 1e-9).sum()), int((difference < -1e-9).sum())
    p = permutation_test(difference.tolist())
    return Paired(against, bootstrap(difference.tolist(), chosen), wins, losses, p, sign_test(wins, losses), p)


def adjusted(pairs: Sequence[Paired], family: int | None = None) -> list[Paired]:
    """Comparisons that are reported together, each with Holm's p among them. family: as of `holm`."""
    ps = holm([x.p for x in pairs], family)
    return [replace(x, holm=p, family=family or len(pairs)) for x, p in zip(pairs, ps, strict=True)]
