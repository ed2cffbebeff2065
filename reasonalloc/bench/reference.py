"""The peers that kernels are timed against, in plain torch."""

from __future__ import annotations

import torch
from torch.nn import functional


def rkv_published_form(queries: torch.Tensor, keys: torch.Tensor, alpha: float = 0.1) -> torch.Tensor:
    """R-KV's score as its paper's code computes it, with the n x n cosine matrix. [Hq, w, d], [H, n, d] -> [H, n - w].

    Written from the definition (arXiv 2505.24133), not copied.
    """
    heads, n, d = keys.shape
    window = queries.shape[1]
    logits = torch.matmul(queries.view(heads, -1, window, d), keys[:, None].transpose(-1, -2)) / d**0.5
    attention = logits.amax(1)[..., : n - window].softmax(-1, dtype=torch.float32).mean(1)
    importance = functional.max_pool1d(attention[:, None], 7, stride=1, padding=3)[:, 0]
    unit = keys / (keys.norm(dim=-1, keepdim=True) + 1e-8)
    cosine = torch.matmul(unit, unit.transpose(-1, -2))
    cosine.diagonal(dim1=-2, dim2=-1).zero_()
    column = torch.arange(n)
    last = torch.where(cosine > 0.5, column, torch.zeros_like(column)).amax(-1)
    cosine.scatter_(-1, last[..., None], 0)
    redundancy = cosine.mean(1).softmax(-1, dtype=torch.float32)[:, : n - window]
    return alpha * importance - (1 - alpha) * redundancy


def sdpa_decode(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Torch's grouped attention of one token: [B, Hq, 1, d], [B, H, n, d] -> [B, Hq, 1, d]."""
    return functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
