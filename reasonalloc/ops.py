"""torch operators of the C core, traceable by ``torch.compile``.

Importing this module registers ``torch.ops.reasonalloc.*``; the functions below are the typed way to call them. Tensors
must be contiguous and on one device, the CPU or, where reasonalloc was built with CUDA, a GPU; anything else is a
``RuntimeError`` that tells what was given and what is allowed. None of the operators has an autograd formula: no
gradient flows through them.

On a GPU they work on the current stream and nobody waits for them, so kernels find what is wrong inside of a tensor: a
head whose length or pages are wrong answers NaN, what cannot be scored is NaN, an `append_` with anything wrong in it
writes nothing; the first operator called after that kernel has run raises the RuntimeError: one called at once may not.
They can be captured in a CUDA graph once each was called.

Letters: B rows, H KV heads, Hq query heads (a multiple of H), T new tokens, N tokens, D head size (up to 1024),
W window, P pages, M pages a head may have. A page holds 16 tokens of one KV head: K as [D, 16], then V as [16, D].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from . import _core
from .store.backends import operators_backend

__all__ = ["PAGE_TOKENS", "append_", "attend", "importance", "redundancy", "rkv_score"]

PAGE_TOKENS = 16
_MAX_HEAD_DIM = 1024
_CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_core.register_torch_ops(operators_backend())
_ATTEND = torch.ops.reasonalloc.attend.default
_APPEND = torch.ops.reasonalloc.append_.default
# What these two call, without a frame of Python: a sixth of the time that one token takes.
_APPEND_NOW = getattr(_APPEND, "_op", _APPEND)
_MARK_WRITTEN = getattr(torch._C, "_increment_version", increment_version)
_RKV_SCORE = torch.ops.reasonalloc.rkv_score.default
_REDUNDANCY = torch.ops.reasonalloc.redundancy.default
_IMPORTANCE = torch.ops.reasonalloc.importance.default


def attend(query: Tensor, pages: Tensor, table: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Attention over ragged pages, causal among the T newest tokens (PagedAttention, arXiv 2309.06180).

    query: [B, Hq, T, D] float32, bfloat16 or float16. pages: [P, 32 D], same dtype. table: [B, H, M] int32, page
    numbers of each head in order; entries past its length are not read. lengths: [B, H] int32, slots of each head, the
    T newest included. Query t sees the first ``length - T + t + 1`` slots. Returns [B, T, Hq, D] in query's dtype;
    sums are float32. RuntimeError for a length below T or above 16 M, and for a page that does not exist.
    """
    return _ATTEND(query, pages, table, lengths, scale)  # type: ignore[no-any-return]


def append_(pages: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> None:
    """Writes T tokens into each head's pages, in place, behind its first ``lengths[b, h]`` slots.

    pages: [P, 32 D]. keys, values: [B, H, T, D], same dtype as pages. table: [B, H, M] int32. lengths: [B, H] int32,
    slots before the call; it stays as it is. RuntimeError, with pages untouched, if a head has no room for T tokens or
    a page does not exist, and if pages is a leaf that requires grad. Heads must not share the pages written to.
    """
    if pages.requires_grad and pages.is_leaf and torch.is_grad_enabled():
        raise RuntimeError("pages is a leaf that requires grad, which cannot be written in place")
    if is_compiling():  # a compiler sees the write in the operator's schema
        _APPEND(pages, keys, values, table, lengths)
    else:
        _APPEND_NOW(pages, keys, values, table, lengths)
        _MARK_WRITTEN((pages,))


def rkv_score(queries: Tensor, keys: Tensor, alpha: float = 0.1, threshold: float = 0.5, kernel: int = 7) -> Tensor:
    """R-KV's score of the tokens before the window, higher stays (arXiv 2505.24133).

    ``alpha * importance - (1 - alpha) * redundancy`` with the two below. queries: [Hq, W, D] float32, those of the W
    newest tokens. keys: [H, N, D] float32, oldest first, N >= W. Returns [H, N - W] float32. RuntimeError where a score
    is not finite.
    """
    return _RKV_SCORE(queries, keys, alpha, threshold, kernel)  # type: ignore[no-any-return]


def redundancy(keys: Tensor, threshold: float = 0.5) -> Tensor:
    """How much each token's key resembles the others: R-KV's redundancy (arXiv 2505.24133), softmax over N.

    keys: [H, N, D] float32, oldest first. threshold: the newest token whose cosine with a key is above it does not
    count as its copy. Returns [H, N] float32; each row sums to 1.
    """
    return _REDUNDANCY(keys, threshold)  # type: ignore[no-any-return]


def importance(queries: Tensor, keys: Tensor, kernel: int = 7) -> Tensor:
    """Attention that the window's queries give to each older token, max-pooled (SnapKV, arXiv 2404.14469).

    queries: [Hq, W, D] float32. keys: [H, N, D] float32, oldest first, N >= W. kernel: odd width of the pool, 1 for
    none. Returns [H, N - W] float32: max over the heads that share a KV head, softmax, mean over the window, pool.
    """
    return _IMPORTANCE(queries, keys, kernel)  # type: ignore[no-any-return]


# ---- Fakes: csrc/torch's checks of shapes and dtypes, for tracing ---------------------------------------------------
# Layout is left to the kernels: a compiler may still choose it.


def _expect(tensor: Tensor, name: str, letters: str, *sizes: int | torch.SymInt | None) -> None:
    """sizes: what each dimension must be, None for any."""

    def message() -> str:
        return f"{name} has shape {list(tensor.shape)}, expected {letters} = {list(sizes)}"

    torch._check(tensor.dim() == len(sizes), message)
    for given, size in zip(tensor.shape, sizes, strict=True):
        if size is not None:
            torch._check(given == size, message)


def _expect_dtype(tensor: Tensor, name: str, *dtypes: torch.dtype) -> None:
    torch._check(tensor.dtype in dtypes, lambda: f"{name} is {tensor.dtype}, expected {dtypes}")


def _expect_head_dim(tensor: Tensor, name: str) -> None:
    def message() -> str:
        return f"{name} has head size {tensor.shape[-1]}, allowed are 1 to {_MAX_HEAD_DIM}"

    torch._check(tensor.shape[-1] >= 1, message)
    torch._check(tensor.shape[-1] <= _MAX_HEAD_DIM, message)


def _expect_pages(tokens: Tensor, name: str, pages: Tensor, table: Tensor, lengths: Tensor) -> None:
    rows, _, _, head_dim = tokens.shape
    _expect_dtype(tokens, name, *_CACHE_DTYPES)
    _expect_head_dim(tokens, name)
    _expect(pages, "pages", "[P, 32 D]", None, 2 * PAGE_TOKENS * head_dim)
    _expect_dtype(pages, "pages", tokens.dtype)
    _expect(table, "table", "[B, H, M]", rows, None, None)
    _expect_dtype(table, "table", torch.int32)
    _expect(lengths, "lengths", "[B, H]", rows, table.shape[1])
    _expect_dtype(lengths, "lengths", torch.int32)


def _expect_group(queries: int, kv: int, names: tuple[str, str]) -> None:
    def message() -> str:
        return f"{names[0]} has {queries} heads, which is no multiple of {names[1]}'s {kv}"

    torch._check(kv >= 1, message)
    torch._check(queries % kv == 0, message)


def _expect_keys(keys: Tensor, head_dim: int | None) -> None:
    _expect(keys, "keys", "[H, N, D]", None, None, head_dim)
    _expect_dtype(keys, "keys", torch.float32)
    _expect_head_dim(keys, "keys")


def _older(queries: Tensor, keys: Tensor, kernel: int) -> Tensor:
    _expect(queries, "queries", "[Hq, W, D]", None, None, None)
    _expect_dtype(queries, "queries", torch.float32)
    _expect_keys(keys, queries.shape[2])
    _expect_group(queries.shape[0], keys.shape[0], ("queries", "keys"))
    window, tokens = queries.shape[1], keys.shape[1]
    for right in (window >= 1, window <= tokens):
        torch._check(right, lambda: f"queries has a window of {window}, allowed are 1 to keys' {tokens} tokens")
    torch._check(kernel >= 1 and kernel % 2 == 1, lambda: f"kernel is {kernel}, allowed are odd widths from 1")
    return keys.new_empty((keys.shape[0], tokens - window))


@torch.library.register_fake("reasonalloc::attend")
def _(query: Tensor, pages: Tensor, table: Tensor, lengths: Tensor, scale: float) -> Tensor:
    _expect(query, "query", "[B, Hq, T, D]", None, None, None, None)
    _expect_pages(query, "query", pages, table, lengths)
    rows, query_heads, tokens, head_dim = query.shape
    _expect_group(query_heads, table.shape[1], ("query", "table"))
    return query.new_empty((rows, tokens, query_heads, head_dim))


@torch.library.register_fake("reasonalloc::append_")
def _(pages: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> None:
    _expect(keys, "keys", "[B, H, T, D]", None, None, None, None)
    _expect(values, "values", "[B, H, T, D]", *keys.shape)
    _expect_dtype(values, "values", keys.dtype)
    _expect_pages(keys, "keys", pages, table, lengths)
    _expect(table, "table", "[B, H, M]", None, keys.shape[1], None)


@torch.library.register_fake("reasonalloc::rkv_score")
def _(queries: Tensor, keys: Tensor, alpha: float, threshold: float, kernel: int) -> Tensor:
    torch._check(0 <= alpha <= 1, lambda: f"alpha is {alpha}, allowed are 0 to 1")
    return _older(queries, keys, kernel)


@torch.library.register_fake("reasonalloc::importance")
def _(queries: Tensor, keys: Tensor, kernel: int) -> Tensor:
    return _older(queries, keys, kernel)


@torch.library.register_fake("reasonalloc::redundancy")
def _(keys: Tensor, threshold: float) -> Tensor:
    _expect_keys(keys, None)
    return keys.new_empty(keys.shape[:2])
