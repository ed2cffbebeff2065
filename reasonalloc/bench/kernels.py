"""Scoring and attention kernels against their torch forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from reasonalloc import _core
from reasonalloc.bench.reference import rkv_published_form, sdpa_decode
from reasonalloc.bench.timing import alternate
from reasonalloc.pages import PagePool

HEADS, GROUP, HEAD_DIM, WINDOW = 8, 4, 128, 8


def keys_like_a_chain(n: int, heads: int = HEADS, d: int = HEAD_DIM, seed: int = 0) -> torch.Tensor:
    """[heads, n, d] keys with a part in common and topics that come and go, as real ones have.

    Real keys (SmolLM2 on MATH-500 text) have a cosine above 0.5 with one of the newest 42 tokens in every row.
    """
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(heads, 1, d, generator=generator)
    topics = torch.randn(heads, (n + 31) // 32, d, generator=generator).repeat_interleave(32, 1)[:, :n]
    return common + 0.5 * topics + 0.5 * torch.randn(heads, n, d, generator=generator)


def keys_at_random(n: int, heads: int = HEADS, d: int = HEAD_DIM, seed: int = 0) -> torch.Tensor:
    """[heads, n, d] uncorrelated keys: no row has a similar one, the worst case of the exact scan."""
    return torch.randn(heads, n, d, generator=torch.Generator().manual_seed(seed))


def _layer(keys: torch.Tensor, values: torch.Tensor, query: torch.Tensor) -> _core.Layer:
    """A layer that holds [B, H, n, d] keys and values and has seen [B, Hq, n, d] queries."""
    pool = PagePool(keys.dtype, keys.shape[3])
    layer = _core.Layer(pool.core, keys.shape[0], keys.shape[1], query.shape[1], WINDOW)
    while missing := layer.step(query, keys, values, None, 1.0, None):
        pool.grow(missing)
    return layer


def _must_agree(what: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> float:
    error = float((got.float() - want.float()).abs().max())
    if not error <= tolerance:
        raise RuntimeError(f"{what}: differs from its reference by {error:.2e} (allowed {tolerance:.0e}); not timed")
    return error


def scores(sizes: list[int], runs: int) -> Iterator[dict[str, Any]]:
    """R-KV's score of one layer, 8 KV heads, 32 query heads, d = 128, float32."""
    for kind, make in (("chain-like keys", keys_like_a_chain), ("random keys", keys_at_random)):
        for n in sizes:
            keys = make(n)
            queries = torch.randn(HEADS * GROUP, n, HEAD_DIM, generator=torch.Generator().manual_seed(1))
            layer = _layer(keys[None], keys[None], queries[None])
            newest = queries[:, -WINDOW:].contiguous()
            out = torch.empty(HEADS, n - WINDOW)
            config = (0, 0.1, 0.5, 7, 0)

            def ours(layer: _core.Layer = layer, out: torch.Tensor = out, config: Any = config) -> None:
                layer.score(0, config, out.numpy().reshape(-1))

            def theirs(newest: torch.Tensor = newest, keys: torch.Tensor = keys) -> torch.Tensor:
                return rkv_published_form(newest, keys)

            ours()
            error = _must_agree(f"rkv n={n}", out, theirs(), 1e-5)
            yield (
                {"kernel": "R-KV score", "case": kind, "n": n, "batch": 1, "dtype": "float32", "peer": "published form"}
                | {"max_error": error}
                | alternate(ours, theirs, runs)
            )


def attention(sizes: list[int], batches: list[int], runs: int) -> Iterator[dict[str, Any]]:
    """One decode step of attention over pages, 8 KV heads, 32 query heads, d = 128, against torch's SDPA.

    bytes: keys and values that each side must read.
    """
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for batch in batches:
            for n in sizes:
                generator = torch.Generator().manual_seed(2)
                keys, values = (torch.randn(batch, HEADS, n, HEAD_DIM, generator=generator).to(dtype) for _ in range(2))
                query = torch.randn(batch, HEADS * GROUP, 1, HEAD_DIM, generator=generator).to(dtype)
                pool = PagePool(dtype, HEAD_DIM)
                layer = _core.Layer(pool.core, batch, HEADS, HEADS * GROUP, WINDOW)
                seen = query.expand(batch, HEADS * GROUP, n - 1, HEAD_DIM)
                while missing := layer.step(seen, keys[:, :, :-1], values[:, :, :-1], None, 1.0, None):
                    pool.grow(missing)
                out = torch.empty(batch, 1, HEADS * GROUP, HEAD_DIM, dtype=dtype)
                last_keys, last_values = keys[:, :, -1:].contiguous(), values[:, :, -1:].contiguous()
                pool.grow(batch * HEADS)

                def ours(layer: Any = layer, arguments: Any = (query, last_keys, last_values, out)) -> None:
                    q, k, v, o = arguments
                    layer.step(q, k, v, None, HEAD_DIM**-0.5, o)  # with the append that a decode step makes
                    layer.crop(1)

                def theirs(q: Any = query, k: Any = keys, v: Any = values) -> torch.Tensor:
                    return sdpa_decode(q, k, v)

                ours()
                error = _must_agree(f"attention n={n}", out.transpose(1, 2), theirs(), tolerance)
                size = 2 * keys.numel() * keys.element_size()
                yield (
                    {
                        "kernel": "decode attention",
                        "case": "",
                        "n": n,
                        "batch": batch,
                        "dtype": str(dtype)[6:],
                        "peer": "torch SDPA",
                    }
                    | {
                        "max_error": error,
                        "bytes": size,
                    }
                    | alternate(ours, theirs, runs)
                )
