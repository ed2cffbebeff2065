"""The peers that kernels are timed against, in plain torch."""

from __future__ import annotations

import torch
from torch.nn import functional

ALPHA, THRESHOLD, POOL = 0.1, 0.5, 7


def rkv_published_form(queries: torch.Tensor, keys: torch.Tensor, alpha: float = ALPHA) -> torch.Tensor:
    """R-KV's score as its paper's code computes it, with the n x n cosine matrix. [Hq, w, d], [H, n, d] -> [H, n - w].

    Written from the definition (arXiv 2505.24133), not copied.
    """
    heads, n, d = keys.shape
    window = queries.shape[1]
    logits = torch.matmul(queries.view(heads, -1, window, d), keys[:, None].transpose(-1, -2)) / d**0.5
    attention = logits.amax(1)[..., : n - window].softmax(-1, dtype=torch.float32).mean(1)
    importance = functional.max_pool1d(attention[:, None], POOL, stride=1, padding=POOL // 2)[:, 0]
    unit = keys / (keys.norm(dim=-1, keepdim=True) + 1e-8)
    cosine = torch.matmul(unit, unit.transpose(-1, -2))
    cosine.diagonal(dim1=-2, dim2=-1).zero_()
    column = torch.arange(n, device=keys.device)
    last = torch.where(cosine > THRESHOLD, column, torch.zeros_like(column)).amax(-1)
    cosine.scatter_(-1, last[..., None], 0)
    redundancy = cosine.mean(1).softmax(-1, dtype=torch.float32)[:, : n - window]
    return alpha * importance - (1 - alpha) * redundancy


def rkv_compress(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, budget: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole compression call of R-KV's published form: score, top-k of each head, gather, the window behind it.

    [1, Hq, w, d], [1, H, n, d] twice -> [1, H, budget, d] twice, older tokens in order of score as that code has them.
    """
    window = queries.shape[2]
    best = rkv_published_form(queries[0], keys[0]).topk(budget - window, dim=-1).indices
    index = best[None, :, :, None].expand(-1, -1, -1, keys.shape[3])

    def cut(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :, :-window].gather(2, index), x[:, :, -window:]], dim=2)

    return cut(keys), cut(values)


def sdpa_grouped(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Torch's grouped attention of one token: [B, Hq, 1, d], [B, H, n, d] -> [B, Hq, 1, d]."""
    return functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)


def sdpa_repeated(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The same with each KV head repeated for its query heads first."""
    group = query.shape[1] // keys.shape[1]
    return functional.scaled_dot_product_attention(
        query, keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    )


def grouped_matmul(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The same by two matrix products and a softmax in float32."""
    rows, heads, _, d = keys.shape
    grouped = query.view(rows, heads, -1, d) * d**-0.5
    weights = torch.matmul(grouped, keys.transpose(-1, -2)).softmax(-1, dtype=torch.float32).to(values.dtype)
    return torch.matmul(weights, values).view(rows, -1, 1, d)
