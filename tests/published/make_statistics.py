"""Numbers that published code computes of seeded inputs: statistics.json, which test_published_statistics.py reads.

    python tests/published/make_statistics.py H2O.git triattention.git > tests/published/statistics.json

The arguments are git directories of FMInference/H2O and WeianMao/triattention, whose history holds a copy of
Halo-949/LazyEviction. Only the classes that are named here are run; none of that code is kept.
"""

import json
import math
import sys

import numpy as np
import torch
from code_of import definitions

COMMITS = {
    "h2o": ("ac75c2a8", "h2o_hf/utils_real_drop/modify_llama.py", "H2OKVCache_LayerWise"),
    "temp": ("e7a0eb18", "LazyEviction/model/temp_cacheobs.py", "TempCache"),
    "lazy": ("e7a0eb18", "LazyEviction/model/kv_utils.py", "Window_LAZYKVCluster"),
}
HEADS, DIM, PROMPT, STEPS = 2, 16, 20, 60


def inputs(seed):
    """Queries, keys and values [1, H, T, D], the same wherever NumPy's generator is."""
    random = np.random.default_rng(seed)
    q, k, v = (random.standard_normal((1, HEADS, PROMPT + STEPS, DIM)).astype(np.float32) for _ in range(3))
    return torch.from_numpy(q * 2), torch.from_numpy(k), torch.from_numpy(v)


def published(name, repository, **names):
    commit, path, wanted = COMMITS[name]
    return definitions(repository, commit, path, [wanted], **names)[0]


def marked(positions):
    """Values [1, H, n, D] that say where their keys are from: the classes gather them along."""
    return positions[None, :, :, None].float().expand(-1, -1, -1, DIM).contiguous()


def grown(keys, k, positions, t):
    """Keys and positions with those of token t."""
    return torch.cat([keys, k[:, :, t : t + 1]], 2), torch.cat([positions, torch.full((HEADS, 1), t)], 1)


def attention(q, keys):
    return (q @ keys.mT / math.sqrt(DIM)).softmax(-1)


def h2o(repository):
    """Kept positions after every step, and the sums at the end; one token is evicted at each."""
    cache = published("h2o", repository)(hh_size=8, recent_size=8)
    q, k, _ = inputs(1)
    kept, keys, positions = [], k[:, :, :PROMPT], torch.arange(PROMPT).expand(HEADS, -1)
    mask = torch.full((PROMPT, PROMPT), -torch.inf).triu(1)
    p = (q[:, :, :PROMPT] @ keys.mT / math.sqrt(DIM) + mask).softmax(-1)
    for t in range(PROMPT, PROMPT + STEPS + 1):
        keys, values = cache((keys, marked(positions)), p)
        positions = values[0, ..., 0].long()
        kept.append(positions.tolist())
        if t < PROMPT + STEPS:
            keys, positions = grown(keys, k, positions, t)
            p = attention(q[:, :, t : t + 1], keys)
    return {"kept": kept, "sums": cache.hh_score.tolist()}


def tied(step, last, gap, window, keep):
    """Whether the last of the older tokens that stay has the score of the first that goes."""
    last, gap = np.array(last[:-window], float), np.array(gap[:-window], float)
    later = np.where(gap == 0, 0, 2 / (1 + np.exp(np.minimum(gap - 1, 80))))
    scores = np.sort(2 / (1 + np.exp(np.minimum(1 + (step - last) / (gap + 1e-5), 80))) + later)[::-1]
    return scores[keep - 1] - scores[keep] < 1e-6


def lazy(repository, seed, alpha=0.02, window=8, capacity=32):
    """TS and MRI before each cut, and the positions that it kept; None where a tie decides which."""
    temp = published("temp", repository)
    temp.alpha = alpha
    cluster = published("lazy", repository, TempCache=temp)(1, window, capacity, window)
    q, k, _ = inputs(seed)
    keys, positions, cuts = k[:, :, :PROMPT], torch.arange(PROMPT).expand(HEADS, -1), []
    for step in range(1, STEPS + 1):
        t = PROMPT + step - 1
        keys, positions = grown(keys, k, positions, t)
        query, before = q[:, :, t : t + 1], None
        if keys.shape[2] > capacity and step % window == 0:  # what the cut will see, which it replaces
            state = dict(temp.layer_last_recurrent), dict(temp.layer_max_period)
            temp.record_recurrence(attention(query, keys), 0, step)
            before = [x[0][0].long().tolist() for x in (temp.layer_last_recurrent, temp.layer_max_period)]
            temp.layer_last_recurrent, temp.layer_max_period = state
        keys, values, _ = cluster.update_kv_in_decoding(keys, query, marked(positions), None, 1, window, 0, step)
        positions = values[0, ..., 0].long()
        order = positions.argsort(-1)  # the class leaves the order of scores; ours is that of age
        positions, keys = positions.gather(1, order), keys.gather(2, order[None, :, :, None].expand_as(keys))
        for state in (temp.layer_last_recurrent, temp.layer_max_period):
            state[0] = state[0].gather(2, order[None])
        if before is not None and any(tied(step, *x, window, capacity - window) for x in zip(*before, strict=True)):
            return None
        if before is not None:
            cuts.append({"step": step, "last": before[0], "gap": before[1], "kept": positions.tolist()})
    return {"seed": seed, "alpha": alpha, "window": window, "capacity": capacity, "cuts": cuts}


def untied(repository):
    """Of the first seed without ties, which torch.topk breaks as it likes."""
    return next(x for seed in range(2, 5000) if (x := lazy(repository, seed)) is not None)


if __name__ == "__main__":
    made = {
        "commits": {name: list(x) for name, x in COMMITS.items()},
        "h2o": h2o(sys.argv[1]),
        "lazy": untied(sys.argv[2]),
    }
    json.dump(made, sys.stdout)
