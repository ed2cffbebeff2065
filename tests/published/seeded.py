"""Inputs of published code and of ours, the same wherever NumPy's generator is."""

import numpy as np
import torch


def prompt(seed, query_heads, heads, tokens, dim):
    """Queries [1, Hq, n, D] and keys [1, H, n, D] of a prompt. Keys drift, so that neighbours are alike."""
    random = np.random.default_rng(seed)
    q = random.standard_normal((1, query_heads, tokens, dim)) * 1.5
    k = np.cumsum(random.standard_normal((1, heads, tokens, dim)) * 0.15, 2) + random.standard_normal(
        (1, heads, tokens, dim)
    )
    return torch.from_numpy(q.astype(np.float32)), torch.from_numpy(k.astype(np.float32))
