"""Slow NumPy float64 forms of what the C core computes, straight from the papers' definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def softmax(x, axis=-1):
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


# ---- Scores (R-KV, arXiv 2505.24133) ---------------------------------------------------------------------------------


def importance(queries, keys, kernel=7):
    """queries [G, W, D], keys [N, D] -> [N - W]: max over the group, softmax, mean over the window, max-pool."""
    q, k = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    older = len(k) - q.shape[1]
    if not older:
        return np.zeros(0)
    mass = softmax((q @ k[:older].T / np.sqrt(k.shape[1])).max(0)).mean(0)
    half = kernel // 2
    return np.array([mass[max(0, i - half) : i + half + 1].max() for i in range(older)])


def cosines(keys):
    k = np.asarray(keys, np.float64)
    unit = k / (np.linalg.norm(k, axis=1, keepdims=True) + 1e-8)
    matrix = unit @ unit.T
    np.fill_diagonal(matrix, 0)
    return matrix


def redundancy(keys, threshold=0.5):
    """keys [N, D] -> [N]: softmax of the column means of the cosine matrix after zeroing one entry a row."""
    matrix = cosines(keys)
    for row in matrix:
        above = np.flatnonzero(row > threshold)
        row[above[-1] if len(above) else 0] = 0
    return softmax(matrix.mean(0))


def rkv(queries, keys, alpha=0.1, threshold=0.5, kernel=7):
    important = importance(queries, keys, kernel)
    return alpha * important - (1 - alpha) * redundancy(keys, threshold)[: len(important)]


def redundancy_margin(keys, threshold=0.5):
    """Distance to the threshold of the nearest cosine that decides which entry is zeroed.

    Where it is below float32's rounding, the definition itself jumps and no comparison is meant.
    """
    margin = np.inf
    for row in cosines(keys):
        above = np.flatnonzero(row > threshold)
        margin = min(margin, np.abs(row[above[-1] if len(above) else 0 :] - threshold).min())
    return margin


# ---- Budgets (ReasonAlloc, arXiv 2606.11164) -------------------------------------------------------------------------


def whole_bounds(n, total, lo=0.25, hi=2.0, floor=0.0):
    """Least and most whole slots of a share; the nearest ones outside where integers cannot keep them."""
    mean = total / n
    least, most = np.ceil(max(lo * mean, floor)), np.floor(min(hi * mean, total))
    return int(least if least <= mean else np.floor(max(lo * mean, floor))), int(
        most if most >= mean else np.ceil(mean)
    )


def robustify_real(x, total, gamma=0.5, lo=0.25, hi=2.0, floor=0.0):
    """The real shares before rounding: clip(s * x**gamma) for the one scale s that meets the total.

    Found by trying every piece of the piecewise linear sum instead of by bisection.
    """
    x = np.asarray(x, np.float64)
    least, most = whole_bounds(len(x), total, lo, hi, floor)
    y = np.maximum(x / x.max(), 1e-9) ** gamma if x.max() > 0 else np.ones(len(x))
    if least * len(x) >= total:
        return np.full(len(x), float(least))
    corners = np.unique(np.concatenate([[0.0], least / y, most / y]))
    sums = [np.clip(s * y, least, most).sum() for s in corners]
    i = int(np.searchsorted(sums, total))
    if i >= len(corners):
        return np.clip(corners[-1] * y, least, most)
    if i == 0 or sums[i] == total:
        return np.clip(corners[i] * y, least, most)
    part = (total - sums[i - 1]) / (sums[i] - sums[i - 1])
    return np.clip((corners[i - 1] + part * (corners[i] - corners[i - 1])) * y, least, most)


def claims(scores, total, window=0):
    """Head claims of online routing: window + number of scores among the (total - H * window) best of the layer."""
    chosen = total - len(scores) * window
    pooled = np.sort(np.concatenate(scores))[::-1]
    if chosen <= 0:
        return np.full(len(scores), window)
    tau = pooled[chosen - 1] if chosen <= len(pooled) else -np.inf
    return np.array([window + int((s >= tau).sum()) for s in scores])


def demand(queries, keys, rho=0.93):
    """queries [Hq, W, D], keys [H, N, D] -> number of tokens whose mean causal attention reaches rho."""
    q, k = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    heads, n, d = k.shape
    window, total = q.shape[1], np.zeros(n)
    for h in range(q.shape[0]):
        for w in range(window):
            seen = n - window + w + 1
            total[:seen] += softmax(q[h, w] @ k[h // (q.shape[0] // heads), :seen].T / np.sqrt(d))
    mass = np.cumsum(np.sort(total / (q.shape[0] * window))[::-1])
    return int((mass < rho).sum()) + 1


# ---- Eviction and attention ------------------------------------------------------------------------------------------


def select(scores, keep, protect=0):
    """Ascending indices that stay: those before `protect` first, then the best, ties to the newer."""
    order = sorted(range(len(scores)), key=lambda i: (i >= protect, -float(scores[i]), -i))
    return sorted(order[:keep])


def attend(queries, keys, values, scale, after=None):
    """queries [Hq, T, D] of the T newest slots, keys and values H arrays [N_h, D] -> [T, Hq, D].

    after: [T] slots behind each query that it does not see; T - 1 - t unless given.
    """
    q = np.asarray(queries, np.float64)
    group = q.shape[0] // len(keys)
    out = np.zeros((q.shape[1], q.shape[0], q.shape[2]))
    for h in range(q.shape[0]):
        k, v = (np.asarray(x[h // group], np.float64) for x in (keys, values))
        for t in range(q.shape[1]):
            seen = len(k) - (q.shape[1] - 1 - t if after is None else after[t])
            out[t, h] = softmax(k[:seen] @ q[h, t] * scale) @ v[:seen]
    return out


def attend_one(query, keys, values, scale, softcap=0.0, sink=-np.inf, visible=True):
    """One query [D] on [N, D] keys and values: soft-capped logits, without those that `visible` hides, and a sink."""
    logits = np.asarray(keys, np.float64) @ np.asarray(query, np.float64) * scale
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    logits = np.where(visible, logits, -np.inf)
    top = max(logits.max(initial=-np.inf), sink)
    if top == -np.inf:
        return np.zeros(np.shape(values)[1])
    weights = np.exp(logits - top)
    return weights @ np.asarray(values, np.float64) / (weights.sum() + np.exp(sink - top))


def lost_mass(queries, keys, scale, gone, softcap=0.0, sinks=None):
    """Mean over queries [G, D] of their attention on the slots that `gone` [N] marks; sinks [G]."""
    logits = np.asarray(queries, np.float64) @ np.asarray(keys, np.float64).T * scale
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    sinks = np.full(len(logits), -np.inf) if sinks is None else np.asarray(sinks, np.float64)
    return softmax(np.concatenate([logits, sinks[:, None]], 1))[:, :-1].mean(0)[gone].sum()


def layer_totals(scores, total, window=0, r_max=10.0):
    """DynamicKV's layer budgets (arXiv 2412.14838) at a cut, in exact fractions. scores: [L][H] arrays.

    Above the windows: in proportion to how many of the row's best scores a layer has, at most r_max times the mean and
    what it holds; the rest evenly, first below that bound. Whole by largest remainder, ties to the lower index.
    """
    windows = [len(layer) * window for layer in scores]
    held = [sum(map(len, layer)) for layer in scores]
    chosen = total - sum(windows)
    every = np.sort(np.concatenate([np.asarray(s, np.float32) for layer in scores for s in layer]))[::-1]
    tau = every[chosen - 1] if 0 < chosen < len(every) else -np.inf
    claims = [sum(int((np.asarray(s, np.float32) >= tau).sum()) for s in layer) for layer in scores]
    most = max(np.floor(np.float64(r_max) * chosen / len(scores)), -(-chosen // len(scores)))
    shares = np.zeros(len(scores), np.int64)
    for claim, bound in ((claims, most), ([1] * len(held), most), ([1] * len(held), np.inf)):
        room = [int(min(h, bound)) - int(s) for h, s in zip(held, shares, strict=True)]
        shares += _dealt(claim, room, chosen - int(shares.sum()))
    return shares + windows


def _dealt(claims, room, left):
    """Whole parts of `left` by claims, none above its room: min(scale * claim, room) for the scale that meets it."""
    takes = [i for i, (c, r) in enumerate(zip(claims, room, strict=True)) if c and r > 0]
    left = min(left, sum(room[i] for i in takes))
    scales = sorted({Fraction(0), *(Fraction(room[i], claims[i]) for i in takes)})
    for low in reversed(scales):  # the last corner of the piecewise linear sum that does not exceed it
        full = [i for i in takes if low * claims[i] >= room[i]]
        fixed, open_ = sum(room[i] for i in full), [i for i in takes if i not in full]
        if fixed + low * sum(claims[i] for i in open_) <= left:
            break
    real = [Fraction(0)] * len(claims)
    for i in full if takes else ():
        real[i] = Fraction(room[i])
    for i in open_ if takes else ():
        real[i] = Fraction((left - fixed) * claims[i], sum(claims[j] for j in open_))
    whole = [int(x) for x in real]
    order = sorted(range(len(real)), key=lambda i: (whole[i] - real[i], i))
    for i in order[: left - sum(whole)]:
        whole[i] += 1
    return np.array(whole, np.int64)


def rotated(x, positions, frequency, interleaved=False):
    """RoPE: [..., n, D] with pair f turned by positions [n] times frequency[f]."""
    pairs = len(frequency)
    first = np.arange(pairs) * (2 if interleaved else 1)
    second = first + (1 if interleaved else pairs)
    angle = np.asarray(positions, np.float64)[:, None] * frequency
    out = np.array(x, np.float64)
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first] = a * np.cos(angle) - b * np.sin(angle)
    out[..., second] = a * np.sin(angle) + b * np.cos(angle)
    return out


def triattention(
    frequency, mean, length, keys, tokens, window, protect=0, interleaved=False, largest=False, group_mean=False
):
    """TriAttention's scores [H, n - window], arXiv 2604.04921 eq. 6 to 10, with every key turned back.

    mean [Hq, D], length [Hq, pairs]: of queries turned back. keys [H, n, D] as they are stored, at positions 0 to
    n - 1. Dimensions that are not rotated count as E[q] k.
    """
    heads, n, _ = keys.shape
    group, pairs = len(mean) // heads, len(frequency)
    first = np.arange(pairs) * (2 if interleaved else 1)
    second = first + (1 if interleaved else pairs)
    older = n - window
    candidates = slice(protect if protect < older else 0, older)
    scores = np.empty((heads, older))
    for h in range(heads):
        position = np.arange(older)
        k = rotated(keys[h, :older], -position, frequency, interleaved)
        pair = k[:, first] + 1j * k[:, second]
        each = []
        for q in range(h * group, (h + 1) * group):
            centre = mean[q, first] + 1j * mean[q, second]
            offsets = []
            for delta in 2.0 ** np.arange(17):
                distance = (tokens - position + delta)[:, None]
                phase = frequency * distance + np.angle(centre) - np.angle(pair)
                offsets.append((np.abs(centre) * np.abs(pair) * np.cos(phase)).sum(1))
            trig = np.max(offsets, 0) if largest else np.mean(offsets, 0)
            norm = ((length[q] - np.abs(centre)) * np.abs(pair)).sum(1)
            rest = k[:, 2 * pairs :] @ mean[q, 2 * pairs :]
            s = trig + norm + rest
            each.append((s - s[candidates].mean()) / max(s[candidates].std(), 1e-6))
        scores[h] = np.mean(each, 0) if group_mean else np.max(each, 0)
    return scores
