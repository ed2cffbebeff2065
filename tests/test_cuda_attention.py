"""The CUDA backend's attention on the emulation: kernels against float64, in several orders of threads and blocks."""

import numpy as np
import oracle
import pytest
import torch
from backends import BACKENDS, DTYPES

from reasonalloc import _core

pytestmark = pytest.mark.core
BACKEND = next((b for b in BACKENDS if b.name == "cuda-emulated"), None)
if BACKEND is None:
    pytest.skip("the emulation is not built", allow_module_level=True)
EPS = {"float32": 3e-6, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@pytest.fixture(params=[0, 1, 2])
def order(request):
    BACKEND.module.set_order(request.param)
    yield request.param
    BACKEND.module.set_order(0)


def tokens(page_format, heads, group, dim, lengths, seed):
    """Queries, keys and values [heads, n, D] of each row: those of a row do not depend on the others."""
    return [
        [
            BACKEND.tensor(np.random.default_rng((seed, row, part)).standard_normal((h, n, dim)), DTYPES[page_format])
            for part, h in enumerate((heads * group, heads, heads))
        ]
        for row, n in enumerate(lengths)
    ]


def filled(page_format, rows, heads, group, dim, lengths):
    """A layer whose rows have had these numbers of tokens, and its keys and values, [H, n, D] of each row."""
    pool = BACKEND.pool(page_format, dim)
    layer = _core.Layer(pool, rows, heads, heads * group, 1)
    begin = np.zeros(rows + 1, np.int64)
    np.cumsum(lengths, out=begin[1:])
    total = int(begin[-1])
    q, k, v = (torch.cat(x, 1)[None] for x in zip(*tokens(page_format, heads, group, dim, lengths, 0), strict=True))
    while missing := layer.step(q, k, v, None, 1.0, None, begin, np.arange(total)):
        BACKEND.add_pages(pool, missing)
    parts = [[x[0, :, begin[r] : begin[r + 1]].double().numpy() for x in (k, v)] for r in range(rows)]
    return pool, layer, parts


def attended(pool, layer, page_format, heads, group, dim, fresh, softcap, sinks):
    """A step of `fresh` tokens of every row; what came in, and what came out."""
    new = tokens(page_format, heads, group, dim, [fresh] * layer.rows, 1)
    q, k, v = (torch.stack(x) for x in zip(*new, strict=True))
    out = torch.full((layer.rows, fresh, heads * group, dim), float("nan"), dtype=q.dtype)
    given = BACKEND.sinks(sinks)
    while missing := layer.step(q, k, v, out, dim**-0.5, None, None, None, softcap, given):
        BACKEND.add_pages(pool, missing)
    return q, k, v, out


@pytest.mark.parametrize("page_format", DTYPES)
@pytest.mark.parametrize(
    ("dim", "group", "fresh", "softcap", "with_sinks"),
    [
        (64, 1, 1, 0.0, False),
        (64, 7, 1, 0.0, True),
        (64, 16, 1, 2.0, False),
        (80, 4, 1, 0.0, False),
        (96, 3, 2, 0.0, True),
        (128, 8, 1, 0.0, False),
        (128, 5, 4, 1.5, True),
        (256, 2, 1, 0.0, False),
        (72, 3, 2, 0.0, True),
    ],
)
def test_decode(page_format, order, dim, group, fresh, softcap, with_sinks):
    heads, lengths = 2, (0, 1, 63, 530)  # the last is split in two
    sinks = np.random.default_rng(2).standard_normal(heads * group).astype(np.float32) if with_sinks else None
    pool, layer, parts = filled(page_format, len(lengths), heads, group, dim, lengths)
    q, k, v, out = attended(pool, layer, page_format, heads, group, dim, fresh, softcap, sinks)
    for row, (keys, values) in enumerate(parts):
        for head in range(heads):
            K, V = (np.concatenate([x[head], y[row, head].double().numpy()]) for x, y in ((keys, k), (values, v)))
            for token in range(fresh):
                n = len(K) - (fresh - 1 - token)
                for g in range(head * group, (head + 1) * group):
                    sink = -np.inf if sinks is None else float(sinks[g])
                    query = q[row, g, token].double().numpy()
                    want = oracle.attend_one(query, K[:n], V[:n], dim**-0.5, softcap, sink, np.ones(n, bool))
                    np.testing.assert_allclose(out[row, token, g].double(), want, rtol=EPS[page_format], atol=6e-6)


@pytest.mark.parametrize("page_format", DTYPES)
@pytest.mark.parametrize(("dim", "group"), [(64, 4), (128, 9), (24, 2)])
def test_neither_order_nor_neighbours_change_a_bit(page_format, dim, group):
    def run(order, lengths):
        BACKEND.module.set_order(order)
        pool, layer, _ = filled(page_format, len(lengths), 1, group, dim, lengths)
        try:
            return attended(pool, layer, page_format, 1, group, dim, 1, 0.0, None)[3]
        finally:
            BACKEND.module.set_order(0)

    batch = run(0, (600, 40, 1))
    assert torch.equal(batch, run(3, (600, 40, 1)))
    assert torch.equal(batch[:1], run(5, (600,)))


def test_long_heads():
    """Where chunks grow from 512 to 1,024 slots."""
    for n in (4095, 4200):
        pool, layer, ((keys, values),) = filled("bfloat16", 1, 1, 2, 64, (n,))
        q, k, v, out = attended(pool, layer, "bfloat16", 1, 2, 64, 1, 0.0, None)
        K, V = (np.concatenate([x[0], y[0, 0].double().numpy()]) for x, y in ((keys, k), (values, v)))
        for g in range(2):
            want = oracle.attend_one(q[0, g, 0].double().numpy(), K, V, 0.125, 0.0, -np.inf, np.ones(n + 1, bool))
            np.testing.assert_allclose(out[0, 0, g].double(), want, rtol=EPS["bfloat16"], atol=6e-6)
