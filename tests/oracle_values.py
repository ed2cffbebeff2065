"""Slow float64 forms of the scores that look at values, and of SnapKV's as published, from the papers' formulas."""

import math

import numpy as np
from oracle import softmax

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def head_attention(queries, keys, older, everything, pool, width, scale, softcap=0.0, sinks=None):
    """queries [G, W, D] of the newest W of [N, D] keys -> [older]: softmax a query head, mean over all, pooled."""
    q, k = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    (group, count, _), n = q.shape, len(k)
    sum_ = np.zeros(older)
    for g in range(group):
        for w in range(count):
            sees = n - (count - 1 - w) if everything else older
            logits = k[:sees] @ q[g, w] * scale
            logits = softcap * np.tanh(logits / softcap) if softcap else logits
            if everything and sinks is not None:
                logits = np.append(logits, sinks[g])
            sum_ += softmax(logits)[:older]
    mean, half = sum_ / (group * count), width // 2
    parts = [mean[max(0, i - half) : i + half + 1] for i in range(older)]
    return np.array([p.max() if pool == "max" else p.sum() / width for p in parts])


def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def _hash(seed, head, position, tokens):
    own = _mix((seed + GOLDEN * (head * 0x100000001 + position + 1)) & MASK)
    return _mix((own + GOLDEN * (tokens + 1)) & MASK)


def _unit(number):
    return ((number >> 11) + 0.5) * 2.0**-53


def exponential(seed, head, position, tokens):
    """The token's exponential number at a cut."""
    return -math.log(_unit(_hash(seed, head, position, tokens)))


def ranges(values):
    return values.max(1).astype(np.float64) - values.min(1)


def coarse(x):
    """To 12 bits, halves up."""
    scale = 2.0 ** (np.floor(np.log2(np.maximum(x, 1e-30))) - 11)
    return np.floor(x / scale + 0.5) * scale


def large(values, older, count, sinks):
    """Whether each older token is among the `count` largest ranges, the first `sinks` first, ties to the newer."""
    range_ = coarse(ranges(values)[:older].astype(np.float32).astype(np.float64))
    order = sorted(range(older), key=lambda i: (i >= sinks, -range_[i], -i))
    return np.isin(np.arange(older), order[:count])


def gaussian(seed, tokens, d, rank=20):
    """[rank, d] standard normals / sqrt(rank)."""
    out = []
    for i in range(rank * d // 2):
        number = _hash(seed, i, 0, tokens)
        radius, angle = math.sqrt(-2 * math.log(_unit(number))), 2 * math.pi * _unit(_mix((number + 1) & MASK))
        out += [radius * math.cos(angle), radius * math.sin(angle)]
    return np.array(out).reshape(rank, d) / math.sqrt(rank)


def dkv(keys, values, older, matrix, sinks):
    k, v = (np.asarray(x, np.float64)[:older] @ matrix.T for x in (keys, values))
    score = (k**2).sum(1) * (v**2).sum(1)
    score /= score.sum()
    score[:sinks] = 2
    return score


def pooled_mix(scores, total, window, safeguard):
    """Ada-KV's real shares: above the window, counts of the layer's best mixed with the even share."""
    heads, rest = len(scores), total - len(scores) * window
    every = np.concatenate(scores)
    tau = np.sort(every)[::-1][rest - 1] if 0 < rest <= len(every) else -np.inf
    counts = np.array([(np.asarray(s) >= tau).sum() for s in scores], float) if rest else np.zeros(heads)
    counts = counts * rest / counts.sum() if counts.sum() else np.full(heads, rest / heads)
    return window + (1 - safeguard) * counts + safeguard * rest / heads


SCORERS = ("snapkv-published", "vatp", "vase", "dkv")


def expected(name, state, kernel, seed, share, scale, softcap=0.0, sinks=None):
    """Scores of the older tokens with the core's defaults: pooled by the maximum, n_large -1, n_sink 0; None where
    rounding decides. state: queries [G, W, D], keys, values [N, D], positions, head, tokens of the row, window."""
    queries, keys, values, where, head, tokens, window = state
    keys, values = (np.asarray(x, np.float64) for x in (keys, values))
    older = len(keys) - window
    if name == "dkv":
        return dkv(keys, values, older, gaussian(seed, tokens, keys.shape[1]), 0)
    vase = name == "vase"
    if queries.shape[1]:
        p = head_attention(
            queries, keys, older, not vase, "avg" if vase else "max", kernel, scale, softcap, None if vase else sinks
        )
    else:
        p = np.full(older, 1 / older)
    if not vase:
        return p * np.abs(np.asarray(values[:older], np.float64)).sum(1) if name == "vatp" else p
    count, range_ = min(older, share // 2 if share <= 512 else 200), ranges(values)[:older].astype(np.float32)
    if p.min() < 1e-30:
        return None  # beyond float32
    drawn = np.array([-exponential(seed, head, int(i), tokens) / x for i, x in zip(where, p, strict=False)])
    return np.where(large(values, older, count, 0), coarse(range_.astype(np.float64)), drawn)
