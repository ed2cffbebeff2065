"""Attention of _core.Layer against float64, on every instruction set."""

import numpy as np
import oracle
import pytest
import torch
from layers import DTYPES, PAGE, TOLERANCE, cut, evict, make, positions, read, slots, snapshot, step, tokens

from reasonalloc import _core

pytestmark = pytest.mark.core


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 40, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_softmax_attention(isa, dtype, dim):
    shape = rows, heads, group, dim = (2, 2, (1, 3, 4, 8)[dim % 4], dim)
    pool, layer = make(dtype, rows, heads, group, dim)
    held = [[[np.zeros((0, dim))] * 2 for _ in range(heads)] for _ in range(rows)]
    for seed, count in enumerate((1, 40, 2, 1, 17, 1, 7)):
        q, k, v = tokens(shape, count, dtype, seed)
        out = step(pool, layer, q, k, v, scale=dim**-0.5)
        assert not out.isnan().any()
        for b in range(rows):
            for h in range(heads):
                held[b][h] = [
                    np.concatenate([old, new[b, h].double().numpy()])
                    for old, new in zip(held[b][h], (k, v), strict=True)
                ]
            expected = oracle.attend(q[b].double(), [x[0] for x in held[b]], [x[1] for x in held[b]], dim**-0.5)
            np.testing.assert_allclose(out[b].double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        if seed in (1, 4):  # ragged from here on
            random = np.random.default_rng(seed)
            now = slots(layer, heads)
            for b in range(rows):
                budgets = [int(random.integers(4, n + 3)) for n in now[b]]
                scores = [random.random(n - 4) for n in now[b]]
                evict(pool, layer, b, budgets, scores)
                for h in range(heads):
                    older = oracle.select(scores[h], max(0, min(budgets[h], now[b][h]) - 4))
                    stay = [*older, *range(now[b][h] - 4, now[b][h])]
                    held[b][h] = [x[stay] for x in held[b][h]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_never_seen(isa, dtype):
    shape = rows, heads, group, dim = (4, 2, 3, 24)
    pool, layer = make(dtype, rows, heads, group, dim)
    real = torch.ones(rows, 21, dtype=torch.bool)
    real[0, :5] = False  # left
    real[1, 17:] = False  # right
    real[2] = False  # a row without any token
    real[3, ::3] = False  # anywhere
    q, k, v = tokens(shape, 21, dtype)
    for x in (q, k, v):
        x.masked_fill_(~real[:, None, :, None], float("nan"))
    out = step(pool, layer, q, k, v, real, scale=0.25)
    for b in range(rows):
        keep = real[b]
        assert (out[b, ~keep] == 0).all()
        assert layer.tokens(b) == keep.sum()
        if keep.any():
            q_b, k_b, v_b = (x[b, :, keep].double() for x in (q, k, v))
            expected = oracle.attend(q_b, list(k_b), list(v_b), 0.25)
            np.testing.assert_allclose(out[b, keep].double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        for h in range(heads):
            assert positions(layer, b, h).tolist() == list(range(int(keep.sum())))
            np.testing.assert_array_equal(read(layer, b, h, dim, False), k[b, h, keep].float())
            np.testing.assert_array_equal(read(layer, b, h, dim, True), v[b, h, keep].float())
    # decode steps go on behind it, the empty row's first token included
    q, k, v = tokens(shape, 1, dtype, 1)
    out = step(pool, layer, q, k, v)
    np.testing.assert_allclose(out[2, 0].double(), v[2, :, 0].double().repeat_interleave(group, 0), rtol=1e-6)


def test_large_logits_stay_finite(isa):
    pool, layer = make(dim=8)
    q, k, v = tokens((2, 2, 2, 8), 50, scale=100.0)
    out = step(pool, layer, q, k, v, scale=10.0)
    assert out.isfinite().all()
    for b in range(2):
        np.testing.assert_allclose(
            out[b].double(), oracle.attend(q[b].double(), k[b].double(), v[b].double(), 10.0), rtol=1e-4, atol=1e-3
        )


def test_logits_that_overflow_to_minus_infinity(isa):
    """A page of them before the first finite one weighs nothing, and is no NaN."""
    pool, layer = make(rows=1, heads=1, group=1, dim=1)
    keys = torch.full((1, 1, PAGE, 1), -1e20)
    step(pool, layer, torch.ones(1, 1, PAGE, 1), keys, torch.ones_like(keys), attend=False)
    out = step(
        pool, layer, torch.full((1, 1, 1, 1), 1e20), torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3.0), scale=1.0
    )
    assert out.item() == 3


def test_strided_and_expanded_tensors():
    shape = rows, _heads, _group, dim = (2, 2, 2, 16)
    q, k, v = tokens(shape, 9)
    plain_pool, plain = make()
    expected = step(plain_pool, plain, q, k, v)
    pool, layer = make()
    # [B, T, H, D] in memory, as models have it
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not turned[0].is_contiguous()
    assert torch.equal(step(pool, layer, *turned), expected)
    one = [x[:1].expand(rows, -1, -1, -1) for x in (q, k, v)]
    pool, layer = make()
    out = step(pool, layer, *one)
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], expected[0])
    part = [torch.cat([x, x], -1)[..., :dim] for x in (q, k, v)]  # a slice with gaps between tokens
    pool, layer = make()
    assert torch.equal(step(pool, layer, *part), expected)


def test_one_instruction_set_is_like_another():
    outputs = []
    before = _core.isa()
    try:
        for name in _core.isas():
            _core.set_isa(name)
            pool, layer = make(dim=40)
            q, k, v = tokens((2, 2, 2, 40), 33)
            outputs.append(step(pool, layer, q, k, v))
    finally:
        _core.set_isa(before)
    for out in outputs[1:]:
        torch.testing.assert_close(out, outputs[0], rtol=1e-5, atol=1e-6)


def test_unknown_instruction_set():
    before = _core.isa()
    with pytest.raises(ValueError, match="'sparc' is not available"):
        _core.set_isa("sparc")
    assert _core.isa() == before


@pytest.mark.parametrize("threads", [2, 5])
def test_thread_count_changes_nothing(threads):
    def run():
        pool, layer = make(rows=3, heads=3, dim=64)
        q, k, v = tokens((3, 3, 2, 64), 150)
        out = [step(pool, layer, q, k, v)]
        cut(pool, layer, 3, [200, 90, 30])
        q, k, v = tokens((3, 3, 2, 64), 3, seed=1)
        return [*out, step(pool, layer, q, k, v)], snapshot(layer)

    expected, held = run()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        given, now = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
    assert now == held
