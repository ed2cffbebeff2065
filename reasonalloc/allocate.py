"""Budgets as integers: robustify (ReasonAlloc, arXiv 2606.11164) and the head and layer allocators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reasonalloc import _core

Ints = npt.NDArray[np.int64]

HEADS = {"uniform": 0, "route": 1, "pooled": 2}
LAYERS = ("uniform", "wave", "pyramid", "dynamic")


def _whole(name: str, value: float) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def _numbers(name: str, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.ascontiguousarray(x, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be a non-empty 1-D sequence, got shape {values.shape}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"{name} must be finite and not negative, got {values.tolist()}")
    return values


def robustify(
    x: Sequence[float] | npt.ArrayLike,
    total: int,
    gamma: float = 0.5,
    lo: float = 0.25,
    hi: float = 2.0,
    floor: float = 0.0,
) -> Ints:
    """Shares of `total` slots that follow x**gamma, clipped to [lo, hi] times the mean share.

    One scale s with sum(clip(s * x**gamma)) = total is found by bisection, then rounded by largest remainder: the
    result is integers that sum to `total` exactly and break no bound that integers can keep; ties go to the lower
    index. `floor` is a least share in slots. All-zero x means equal claims. (ReasonAlloc, arXiv 2606.11164.)

    Raises ValueError for negative or non-finite x, bounds that are not lo <= 1 <= hi, or a floor above the mean share.
    """
    values = _numbers("x", x)
    if not 0 <= lo <= 1 <= hi:
        raise ValueError(f"bounds must satisfy 0 <= lo <= 1 <= hi, got lo={lo}, hi={hi}")
    total = _whole("total", total)
    if total < 0 or not gamma >= 0 or not floor >= 0:
        raise ValueError(f"total, gamma and floor must not be negative, got {total}, {gamma}, {floor}")
    out = np.empty(len(values), dtype=np.int64)
    _core.robustify(values, total, gamma, lo, hi, floor, out)
    return out


def route(
    scores: Sequence[npt.ArrayLike],
    total: int,
    *,
    heads: str = "route",
    window: int = 0,
    gamma: float = 0.5,
    lo: float = 0.25,
    hi: float = 2.0,
    mu: float = 0.25,
    safeguard: float = 0.2,
) -> Ints:
    """Head budgets of one layer that sum to `total`.

    scores: one 1-D array for each head, the scores of its older tokens; `window` further tokens of each head always
    stay. heads: "route" (ReasonAlloc: tau is the total-th largest pooled score, the number of scores >= tau is a
    head's claim, robustified with a floor of mu * total / H), "pooled" (Ada-KV, arXiv 2407.11550) or "uniform".

    Raises ValueError for scores that are not finite or a total below the windows.
    """
    if heads not in HEADS:
        raise ValueError(f"heads must be one of {sorted(HEADS)}, got {heads!r}")
    if not len(scores):
        raise ValueError("scores must hold one array for each head, got none")
    arrays = [np.ascontiguousarray(s, dtype=np.float32).reshape(-1) for s in scores]
    if any(not np.isfinite(a).all() for a in arrays):
        raise ValueError("scores must be finite")
    out = np.empty(len(arrays), dtype=np.int64)
    counts = np.array([len(a) for a in arrays], dtype=np.int64)
    config = (HEADS[heads], gamma, lo, hi, mu, safeguard)
    _core.route(np.concatenate(arrays), counts, _whole("window", window), _whole("total", total), config, out)
    return out


def route_layers(
    scores: Sequence[Sequence[npt.ArrayLike]], total: int, *, window: int = 0, r_max: float = 10.0
) -> Ints:
    """Totals of a row's layers that sum to `total`, by the scores of all of them.

    scores: [L][H] 1-D arrays, the scores of a head's older tokens; `window` further tokens of each head always stay.
    tau is the (total - L x H x window)-th largest score of all; a layer's claim is the number of its scores >= tau.
    Above their windows layers get slots in proportion to their claims, at most r_max times the mean and what they hold;
    what that leaves over goes evenly to the others, at last beyond r_max. Ties go to the lower index. (DynamicKV, arXiv
    2412.14838, applied at a cut.)

    Raises ValueError for scores that are not finite, layers of different heads, r_max below 1, or a total below the
    windows or above what the layers hold.
    """
    heads = len(scores[0]) if len(scores) else 0
    if not heads or any(len(layer) != heads for layer in scores):
        raise ValueError(f"scores must hold as many arrays for each layer, got {[len(x) for x in scores]}")
    if not r_max >= 1:
        raise ValueError(f"r_max must be at least 1, got {r_max}")
    arrays = [np.ascontiguousarray(s, dtype=np.float32).reshape(-1) for layer in scores for s in layer]
    if any(not np.isfinite(a).all() for a in arrays):
        raise ValueError("scores must be finite")
    counts = np.array([len(a) for a in arrays], dtype=np.int64)
    window, total, out = _whole("window", window), _whole("total", total), np.empty(len(scores), dtype=np.int64)
    _core.route_layers(np.concatenate(arrays), counts, heads, window, total, r_max, out)
    return out


def pyramid_published(layers: int, capacity: int, window: int, tokens: int, beta: int = 20) -> list[int]:
    """Slots of a head of each layer, PyramidKV's (arXiv 2406.02069) as in its code (KVCache-Factory): about
    `capacity` on average, `window` of them always kept, for a row of `tokens`.

    Falls from 2 C - C // beta above the window by a whole number a layer, C = capacity - window; uniform below 2 C
    tokens; at most what there is in the first layer. The step is rounded down, so that the last layer has more than
    C // beta, and the sum is more than `capacity` a layer, by less than half the number of layers each.
    """
    room = capacity - window
    least, older = room // beta, tokens - window
    most = 2 * room - least
    if layers == 1 or tokens < 2 * room:
        return [capacity] * layers
    if most >= older:
        most, least = older, 2 * room - older
    step = (most - least) // (layers - 1)
    return [most - i * step + window for i in range(layers)]


def pyramid(layers: int, total: int, beta: float = 20.0, floor: float = 0.0) -> Ints:
    """Layer totals that fall linearly with depth (PyramidKV, arXiv 2406.02069).

    The last layer has 1 / beta of the mean above `floor`, the first as much above the mean as the last is below.
    """
    if beta < 1:
        raise ValueError(f"beta must be at least 1, got {beta}")
    mean = total / layers - floor
    claims = np.linspace(2 * mean - mean / beta, mean / beta, layers) + floor
    return robustify(np.maximum(claims, 0), total, gamma=1.0, lo=0.0, hi=max(float(layers), 1.0), floor=floor)
