"""Statistics that attention gathers, slot by slot in float64, from the papers' formulas; scores made of them.

H2O arXiv 2306.14048 algorithm 1; LazyEviction arXiv 2506.15969 (TS, MRI); RaaS arXiv 2502.11147.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Slot(NamedTuple):
    """sum: accumulated attention. last: position of the newest query for which it was active. gap: the longest one.
    unsure: rounding decides whether it was active."""

    sum: float
    last: int
    gap: int
    unsure: bool = False


class Stats(NamedTuple):
    """As `_core.Layer` takes them."""

    prompt: int = 0
    decay: float = 1.0
    activation: float = 1e-4
    relative: bool = False
    birth: bool = False

    def new(self, position):
        return Slot(0.0, position - self.birth, 0)


GATHERED = {"h2o": "accumulated", "lazy": "recurrence", "raas": "recurrence"}  # what a scorer needs


def weights(queries, keys, scale, softcap=0.0, sinks=None, visible=None):
    """queries [G, D], keys [N, D] -> [G, N]: softmax, masks, soft-capping and sinks [G] included."""
    logits = np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T * scale
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    if visible is not None:
        logits = np.where(visible, logits, -np.inf)
    if sinks is not None:
        logits = np.concatenate([logits, np.asarray(sinks, np.float64)[:, None]], 1)
    top = logits.max(1, keepdims=True)
    e = np.exp(logits - np.where(np.isfinite(top), top, 0))
    whole = e.sum(1, keepdims=True)
    return np.divide(e, whole, out=np.zeros_like(e), where=whole > 0)[:, : len(keys)]


def added(slots, p, now, stats):
    """The slots after a query at position `now` with weights p [G, N]."""
    bound = np.float64(np.float32(stats.activation)) / (len(slots) if stats.relative else 1)
    result = []
    for slot, total, peak in zip(slots, p.sum(0), p.max(0), strict=True):
        active = peak >= bound
        result.append(
            Slot(
                np.float64(np.float32(stats.decay)) * slot.sum + total,
                now if active else slot.last,
                max(slot.gap, now - slot.last) if active else slot.gap,
                slot.unsure or abs(peak / bound - 1) < 1e-4,
            )
        )
    return result


def h2o(slots, window, group, tokens, recent):
    """recent: slots of the head's share that are its newest."""
    n = len(slots)
    scores = [s.sum if i < n - recent else group * tokens + i + 1 for i, s in enumerate(slots)]
    return np.array(scores[: max(0, n - window)])


def _twice_sigmoid(x):
    return 2 / (1 + np.exp(-np.clip(x, -700, 700)))


def lazy(slots, window, now, code=False):
    """H1 + H2 of the paper, or what the published code computes."""
    scores = []
    for s in slots[: max(0, len(slots) - window)]:
        idle = max(0, now - s.last)
        later = _twice_sigmoid(1 - s.gap) if s.gap else 0
        if code:
            scores.append(_twice_sigmoid(-(1 + idle / (s.gap + 1e-5))) + later)
        else:
            scores.append(_twice_sigmoid(-idle / s.gap) + later if s.gap else 0)
    return np.array(scores)


def raas(slots, window):
    return np.array([float(s.last) for s in slots[: max(0, len(slots) - window)]])


def check_columns(core, row, head, slots, scorer, atol=2e-5):
    """What the core has gathered of a head."""
    fields, raw = core.columns(row, head)
    columns = np.frombuffer(raw, np.int32).reshape(fields, len(slots))
    if scorer not in GATHERED:
        assert fields == 0
    elif GATHERED[scorer] == "accumulated":
        (sums,) = columns.view(np.float32)
        np.testing.assert_allclose(sums, [s.sum for s in slots], rtol=1e-5, atol=atol)
    else:
        sure = np.array([not s.unsure for s in slots], bool)
        np.testing.assert_array_equal(columns[0][sure], np.array([s.last for s in slots], int)[sure])
        np.testing.assert_array_equal(columns[1][sure], np.array([s.gap for s in slots], int)[sure])
