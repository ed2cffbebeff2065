"""How far apart waves are, and whether those of two tasks are further apart than those of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from reasonalloc.lab.evaluate.statistics import CONFIDENCE, INSTALL, RESAMPLES, Measure

Floats = npt.NDArray[np.float64]
Matrix = list[list[float | None]]

_AT_ONCE = 500  # resamples, to bound the memory


def share(values: npt.ArrayLike) -> Floats:
    """Positive numbers, one a layer, as a distribution over the layers."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all() or (x < 0).any() or not x.sum():
        raise ValueError(f"a wave has one number from 0 for each layer and not all 0, got {x.tolist()}")
    out: Floats = x / x.sum()
    return out


def earth_movers(layers: Sequence[int], one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Earth Mover's Distance of two waves, in layers: how far the mean slot has to be carried.

    layers: their numbers, between which the distance is the difference.
    """
    try:
        from scipy.stats import wasserstein_distance
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the Earth Mover's Distance needs scipy: {INSTALL}") from error
    return float(wasserstein_distance(layers, layers, share(one), share(other)))


def matrix(layers: Sequence[int], waves: Sequence[npt.ArrayLike]) -> Floats:
    """[n, n] distances between all waves."""
    out = np.zeros((len(waves), len(waves)))
    for i in range(len(waves)):
        for j in range(i):
            out[i, j] = out[j, i] = earth_movers(layers, waves[i], waves[j])
    return out


def rank_correlation(distances: Floats, values: npt.ArrayLike) -> float | None:
    """Spearman's, over all pairs, of the distances with the differences of one number each; None where one is constant.

    distances: [n, n]; values: [n].
    """
    from scipy.stats import spearmanr

    x = np.asarray(values, dtype=np.float64)
    one, other = (m[np.triu_indices(len(x), 1)] for m in (distances, abs(x[:, None] - x[None, :])))
    if len(one) < 2 or not np.ptp(one) or not np.ptp(other):
        return None
    return float(spearmanr(one, other).statistic)


@dataclass(frozen=True)
class Separation:
    """Distances between single prompts, of the same and of different tasks.

    within, between: mean over pairs of prompts of one task, of two tasks (None where there is no such pair).
    difference: between less within, with its 95 % bootstrap interval over prompts (drawn within each task). p: share
    of random assignments of the prompts to the tasks with at least this difference (permutation test); it cannot be
    below least_p. means: [T, T] mean distance, the diagonal between different prompts of a task. pairwise_p: [T, T]
    the same test on two tasks alone.
    """

    within: float | None
    between: float | None
    difference: Measure | None
    p: float | None
    least_p: float | None
    means: Matrix
    pairwise_p: Matrix


def separation(distances: Floats, labels: Sequence[int], seed: int = 0) -> Separation:
    """distances: [n, n] between prompts. labels: the task of each, 0 to T - 1, each at least once."""
    task = np.asarray(labels)
    tasks = range(int(task.max()) + 1)
    means: Matrix = [[_mean(distances, task == a, task == b) for b in tasks] for a in tasks]
    same = task[:, None] == task[None, :]
    apart = ~np.eye(len(task), dtype=bool)
    within = float(distances[same & apart].mean()) if (same & apart).any() else None
    between = float(distances[~same].mean()) if (~same).any() else None
    if within is None or between is None:
        return Separation(within, between, None, None, None, means, [[None for _ in tasks] for _ in tasks])
    rng = np.random.default_rng(seed)
    pairwise: Matrix = [[None for _ in tasks] for _ in tasks]
    for a in tasks:
        for b in range(a):
            both = (task == a) | (task == b)
            pairwise[a][b] = pairwise[b][a] = _permutation(distances[np.ix_(both, both)], task[both], rng)
    low, high = _interval(distances, task, rng)
    difference = Measure(between - within, low, high)
    return Separation(within, between, difference, _permutation(distances, task, rng), _least(task), means, pairwise)


def _mean(distances: Floats, rows: npt.NDArray[np.bool_], columns: npt.NDArray[np.bool_]) -> float | None:
    """Over pairs of different prompts."""
    chosen = rows[:, None] & columns[None, :] & ~np.eye(len(rows), dtype=bool)
    return float(distances[chosen].mean()) if chosen.any() else None


def _gap(distances: Floats, task: npt.NDArray[np.int64], times: Floats) -> Floats:
    """[R] mean between tasks less mean within them. task: [R, n] of each prompt; times: [R, n] that each counts."""
    weight = times[:, :, None] * times[:, None, :] * (1.0 - np.eye(len(distances)))
    inside = weight * (task[:, :, None] == task[:, None, :])
    total, within = weight.sum((1, 2)), inside.sum((1, 2))
    sum_total, sum_within = (np.einsum("rij,ij->r", x, distances) for x in (weight, inside))
    with np.errstate(invalid="ignore", divide="ignore"):  # not a number where there is no pair of a kind
        out: Floats = (sum_total - sum_within) / (total - within) - sum_within / within
    return out


def _permutation(distances: Floats, task: npt.NDArray[np.int64], rng: np.random.Generator) -> float | None:
    """One-sided: are tasks further apart than chance would have it?"""
    once = np.ones((1, len(task)))
    observed = float(_gap(distances, task[None], once)[0])
    if np.isnan(observed):
        return None
    reached = 0
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = rng.permuted(np.tile(task, (_AT_ONCE, 1)), axis=1)
        reached += int((_gap(distances, drawn, once) >= observed - 1e-12).sum())
    return (1 + reached) / (1 + RESAMPLES)


def _least(task: npt.NDArray[np.int64]) -> float:
    """The smallest p that this many prompts allow: the share of assignments that are the tasks' own, renamed."""
    counts = np.bincount(task)
    assignments, left = 1, len(task)
    for count in counts:
        assignments *= comb(left, int(count))
        left -= int(count)
    renamings = 1
    for size in np.unique(counts):
        for k in range(int((counts == size).sum())):
            renamings *= k + 1
    return max(renamings / assignments, 1 / (1 + RESAMPLES))


def _interval(distances: Floats, task: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[float, float]:
    """Percentile interval; a prompt that is drawn twice makes no pair with itself."""
    members = [np.flatnonzero(task == t) for t in range(int(task.max()) + 1)]
    gaps = []
    for _ in range(RESAMPLES // _AT_ONCE):
        times = np.zeros((_AT_ONCE, len(task)))
        for group in members:
            times[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=_AT_ONCE)
        gaps.append(_gap(distances, task[None], times))
    low, high = np.nanquantile(np.concatenate(gaps), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
