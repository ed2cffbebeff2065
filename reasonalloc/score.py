"""Scores of cached tokens, computed in C; the cache uses the same code on its pages."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc import _core

SCORERS = tuple(_core.scorers())

Floats = npt.NDArray[np.float32]
Input: TypeAlias = torch.Tensor | npt.ArrayLike
T = TypeVar("T", torch.Tensor, npt.NDArray[np.number])  # results come as the keys do


def _array(name: str, x: Input) -> Floats:
    if isinstance(x, torch.Tensor):
        x = x.detach().to(device="cpu", dtype=torch.float32).numpy()
    array = np.ascontiguousarray(x, dtype=np.float32)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"{name} must have 3 non-empty dimensions, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array


def _run(queries: Input, keys: Input, scorer: str, alpha: float, threshold: float, kernel: int) -> tuple[Floats, ...]:
    q, k = _array("queries", queries), _array("keys", keys)
    (heads_q, window, d), (heads, n, d_k) = q.shape, k.shape
    if d != d_k or heads_q % heads:
        raise ValueError(f"queries [Hq, w, d] and keys [H, n, d] do not fit: {q.shape} and {k.shape}")
    if n < window:
        raise ValueError(f"{n} keys are fewer than the {window} queries of the window")
    if not 0 <= alpha <= 1 or kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"alpha must lie in [0, 1] and kernel be odd, got alpha={alpha}, kernel={kernel}")
    group = heads_q // heads
    score, importance = np.empty((heads, n - window), np.float32), np.empty((heads, n - window), np.float32)
    redundancy = np.zeros((heads, n), np.float32)
    config = (scorer, alpha, threshold, kernel, 0)
    for h in range(heads):
        _core.score_dense(
            q[h * group : (h + 1) * group], group, window, k[h], n, d, config, score[h], importance[h], redundancy[h]
        )
    return score, importance, redundancy


def _like(x: T, result: Floats) -> T:
    return torch.from_numpy(result) if isinstance(x, torch.Tensor) else result


def rkv(
    queries: Input, keys: T, alpha: float = 0.1, threshold: float = 0.5, kernel: int = 7, *, centred: bool = False
) -> T:
    """R-KV's score of the older tokens (arXiv 2505.24133): alpha * importance - (1 - alpha) * redundancy.

    centred: plus (1 - alpha) / n, so that redundancy counts from its mean. The order within a head is the same; heads
    of different n become comparable, which online routing needs: a softmax over more tokens gives each of them less, so
    that of two like heads the one with more slots would win the next ones too.

    queries: [Hq, w, d], the queries of the newest w tokens; keys: [H, n, d], oldest first. Returns float32 [H, n - w],
    a tensor if keys is one, else an array; higher stays. Raises ValueError for shapes that do not fit or numbers that
    are not finite.
    """
    scorer = "rkv-centred" if centred else "rkv"
    return _like(keys, _run(queries, keys, scorer, alpha, threshold, kernel)[0])


def importance(queries: Input, keys: T, kernel: int = 7) -> T:
    """Attention of the window's queries on the older tokens, max-pooled (SnapKV, arXiv 2404.14469): [H, n - w].

    Logits q.k / sqrt(d), max over the query heads of a KV head, softmax over the older tokens, mean over the queries.
    """
    return _like(keys, _run(queries, keys, "importance", 1.0, 0.5, kernel)[1])


def redundancy(keys: T, threshold: float = 0.5) -> T:
    """R-KV's redundancy of every token (arXiv 2505.24133): [H, n], each head sums to 1.

    Softmax over the tokens of the column means of the cosine matrix, with the diagonal and, in each row, the newest
    entry above `threshold` set to zero (entry 0 where a row has none). O(n d) work where keys resemble each other.
    """
    k = _array("keys", keys)
    return _like(keys, _run(np.zeros((k.shape[0], 1, k.shape[2])), k, "rkv", 0.0, threshold, 1)[2])
