"""Attention and what is read back, on every backend, format, instruction set and dtype, against float64."""

import numpy as np
import oracle
import pytest
import torch
from backends import DTYPES as STORED
from layers import positions, read

from reasonalloc import _core

pytestmark = pytest.mark.core
EPS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def schedule(random, rows, most):
    """New tokens of each row: none, one or many."""
    fresh = random.integers(0, most + 1, rows)
    fresh[random.integers(rows)] = max(1, int(random.integers(0, most + 1)))
    begin = np.zeros(rows + 1, np.int64)
    np.cumsum(fresh, out=begin[1:])
    return fresh, begin


@pytest.mark.parametrize(
    ("dim", "group", "softcap", "with_sinks", "with_mask", "packed"),
    [
        (1, 1, 0.0, False, False, False),
        (3, 7, 0.0, True, False, True),
        (16, 2, 2.0, False, True, False),
        (20, 3, 0.0, False, False, True),
        (64, 4, 1.5, True, True, True),
        (80, 5, 0.0, True, False, False),
        (128, 6, 0.0, False, True, True),
        (256, 1, 3.0, True, False, False),
    ],
)
def test_steps(backend, page_format, dtype, dim, group, softcap, with_sinks, with_mask, packed):
    random = np.random.default_rng(dim)
    rows, heads, scale = 3, 2, 0.7 / np.sqrt(dim)
    pool = backend.pool(page_format, dim)
    layer = _core.Layer(pool, rows, heads, heads * group, 4)
    keys, values = ([[np.zeros((0, dim))] * heads for _ in range(rows)] for _ in range(2))
    sinks = random.standard_normal(heads * group).astype(np.float32) if with_sinks else None
    scale = float(np.float32(scale))
    many = 270 if backend.effort == 1 else 60  # 270: heads that are split into chunks later
    for most in (5, many, 1, 1, 18, 1):
        fresh, begin = schedule(random, rows, most)
        total, places = int(begin[-1]), int(begin[-1]) if packed else int(fresh.max()) + 2
        index = np.arange(total)
        if not packed:
            index = np.concatenate([np.sort(random.permutation(places)[:n]) for n in fresh])
        q, k, v = (
            backend.tensor(random.standard_normal((1 if packed else rows, h, places, dim)), dtype)
            for h in (heads * group, heads, heads)
        )
        visible = None
        if with_mask:
            visible = random.random((total, 600)) < 0.7
            visible[0] = False
        out = torch.full((q.shape[0], places, heads * group, dim), 7.0, dtype=dtype, device=backend.device)
        arguments = (q, k, v, out, scale, None, begin, index.astype(np.int64), softcap, backend.sinks(sinks), visible)
        while missing := layer.step(*arguments):
            backend.add_pages(pool, missing)
        q, k, v, out = (x.cpu() for x in (q, k, v, out))
        untouched = torch.ones(out.shape[:2], dtype=torch.bool)
        for row in range(rows):
            at = index[begin[row] : begin[row + 1]]
            source = 0 if packed else row
            untouched[source, at] = False
            for head in range(heads):
                for store, new in ((keys, k), (values, v)):
                    kept = new[source, head, at].to(STORED[page_format]).double().numpy()
                    store[row][head] = np.concatenate([store[row][head], kept])
                assert positions(layer, row, head).tolist() == list(range(len(keys[row][head])))
                np.testing.assert_array_equal(read(layer, row, head, dim, False), keys[row][head])
                np.testing.assert_array_equal(read(layer, row, head, dim, True), values[row][head])
                for i in range(0, len(at), max(1, len(at) // 4)):
                    n = len(keys[row][head]) - (len(at) - 1 - i)
                    seen = visible[begin[row] + i, :n] if with_mask else np.ones(n, bool)
                    for query_head in range(head * group, (head + 1) * group):
                        want = oracle.attend_one(
                            q[source, query_head, at[i]].double().numpy(),
                            keys[row][head][:n],
                            values[row][head][:n],
                            scale,
                            softcap,
                            float(sinks[query_head]) if with_sinks else -np.inf,
                            seen,
                        )
                        got = out[source, at[i], query_head].double().numpy()
                        np.testing.assert_allclose(got, want, rtol=EPS[dtype], atol=EPS[dtype] + 5e-6)
        assert (out[untouched] == 7).all()


@pytest.mark.parametrize("ours", STORED.values())
def test_keys_and_values_of_different_dtypes(backend, page_format, dtype, ours):
    pool = backend.pool(page_format, 20)
    layer = _core.Layer(pool, 1, 2, 2, 4)
    q, k, v = (backend.tensor(torch.randn(1, 2, 19, 20), d) for d in (torch.float32, dtype, ours))
    backend.add_pages(pool, 4)
    assert layer.reserve(19) == 0
    assert layer.step(q, k, v, None, 1.0) == 0
    for head in range(2):
        np.testing.assert_array_equal(read(layer, 0, head, 20, False), k[0, head].cpu().to(STORED[page_format]).float())
        np.testing.assert_array_equal(read(layer, 0, head, 20, True), v[0, head].cpu().to(STORED[page_format]).float())


@pytest.mark.parametrize("scorer", ["random", "h2o"])
def test_masks_are_of_positions_not_of_slots(backend, scorer):
    """After a cut the two differ; what is hidden gathers nothing either."""
    random, heads, group, dim = np.random.default_rng(5), 2, 3, 20
    pool = backend.pool("float32", dim)
    layer = _core.Layer(pool, 1, heads, heads * group, 4, scorer)

    def step(count, visible=None):
        q, k, v = (backend.tensor(random.standard_normal((1, h, count, dim))) for h in (heads * group, heads, heads))
        out = torch.empty(1, count, heads * group, dim, device=backend.device)
        while missing := layer.step(q, k, v, out, 0.3, None, None, None, 0.0, None, visible):
            backend.add_pages(pool, missing)
        return q[0].cpu().double().numpy(), out[0].cpu().double().numpy()

    def columns(head):
        fields, raw = layer.columns(0, head)
        return np.frombuffer(raw, np.int32).reshape(fields, len(positions(layer, 0, head)))

    step(90)
    settings = (scorer, 0.3, 0.5, 5, 11, 0.5)
    found = np.zeros((1, heads), np.int64), np.zeros((1, heads)), np.zeros(1, np.bool_)
    while missing := layer.cut(np.array([70]), np.zeros(1, np.int64), settings, (0, *[1.0] * 5), *found):
        backend.add_pages(pool, missing)
    for count in (1, 3):
        visible = random.random((count, 100)) < 0.5
        before = [columns(head) for head in range(heads)]
        queries, out = step(count, visible)
        for head in range(heads):
            places = positions(layer, 0, head)
            assert len(places) < places[-1]
            keys, values = (read(layer, 0, head, dim, which) for which in (False, True))
            for i, query_head in np.ndindex(count, group):
                n, query_head = len(places) - (count - 1 - i), head * group + query_head
                seen = visible[i, places[:n]]
                want = oracle.attend_one(queries[query_head, i], keys[:n], values[:n], 0.3, visible=seen)
                np.testing.assert_allclose(out[i, query_head], want, rtol=2e-6, atol=5e-6)
            if len(before[head]):
                old = places[:-count]
                changed = (columns(head)[:, : len(old)] != before[head]).any(0)
                assert changed.tolist() == visible[:, old].any(0).tolist()
