"""Inputs of published code and of ours, the same wherever NumPy's generator is."""

import numpy as np
import torch


def prompt(seed, query_heads, heads, tokens, dim):
    """Queries [1, Hq, n, D] and keys [1, H, n, D] of a prompt.

    Keys drift, so that neighbours are alike; a head looks more narrowly than those before it.
    """
    random = np.random.default_rng(seed)
    sharpness = np.linspace(0.5, 2.0, query_heads)[:, None, None]
    q = random.standard_normal((1, query_heads, tokens, dim)) * sharpness
    drift = np.cumsum(random.standard_normal((1, heads, tokens, dim)) * 0.15, 2)
    k = drift + random.standard_normal((1, heads, tokens, dim))
    return torch.from_numpy(q.astype(np.float32)), torch.from_numpy(k.astype(np.float32))


def prompts(seed, layers, **shape):
    """The same of each layer of a model; a layer looks more narrowly than those before it."""
    for layer in range(layers):
        q, k = prompt(1000 * seed + layer, **shape)
        yield q * (0.5 + layer / layers), k
