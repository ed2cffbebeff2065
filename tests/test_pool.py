"""_core.Pool: pages asked for, given back, kept alive."""

import numpy as np
import pytest
import torch
from layers import add_pages, assert_same, evict, make, positions, read, snapshot, step, tokens

from reasonalloc import _core

pytestmark = pytest.mark.core


def test_pages_are_asked_for_exactly():
    pool, layer = make(rows=2, heads=3, dim=8)
    q, k, v = tokens((2, 3, 2, 8), 33)
    before = snapshot(layer)
    assert layer.reserve(33) == 2 * 3 * 3
    assert_same(snapshot(layer), before)
    add_pages(pool, 17)
    assert layer.step(q, k, v, None, 1.0) == 1
    assert_same(snapshot(layer), before)
    add_pages(pool, 1)
    assert layer.reserve(33) == 0
    assert layer.step(q, k, v, None, 1.0) == 0
    assert pool.info()[:3] == (18, 18, 0)


def test_trim_keeps_contents_and_gives_memory_back():
    pool, layer = make(rows=3, heads=2, dim=8)
    other = _core.Layer(pool, 1, 2, 4, 4)
    for seed in range(12):  # a slab for every step
        step(pool, layer, *tokens((3, 2, 2, 8), 16, seed=seed), attend=False)
        step(pool, other, *tokens((1, 2, 2, 8), 16, seed=100 + seed), attend=False)
    layer.reorder(np.array([0, 0, 2], np.int64))  # shared pages move too
    for row in (0, 2):
        evict(pool, layer, row, [40, 9], [np.arange(188) % 7] * 2)
    held = [
        read(x, r, h, 8, values)
        for x in (layer, other)
        for r in range(x.rows)
        for h in (0, 1)
        for values in (False, True)
    ]
    before = snapshot(layer), snapshot(other)
    _pages, used, free, _, slabs = pool.info()
    assert free >= 40
    freed = pool.trim(2)
    assert freed > 0
    now = pool.info()
    assert now[1] == used
    assert now[4] == slabs - freed
    assert 2 <= now[2] < free
    assert (snapshot(layer), snapshot(other)) == before
    again = [
        read(x, r, h, 8, values)
        for x in (layer, other)
        for r in range(x.rows)
        for h in (0, 1)
        for values in (False, True)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(held, again, strict=True))
    # and life goes on
    out = step(pool, layer, *tokens((3, 2, 2, 8), 1, seed=77))
    assert out.isfinite().all()
    layer.reset(), other.reset()
    assert pool.info()[1] == 0
    while pool.trim(0):
        pass
    assert pool.info()[0] == 0


def test_a_device_has_copied_pages_before_their_slab_goes():
    """torch may give a slab's memory to another stream at once."""
    module = pytest.importorskip("reasonalloc._cuda_emulated", reason="built with REASONALLOC_EMULATE=1")
    pool = _core.Pool("float32", 8, module.backend)
    gone, stays = (_core.Layer(pool, 1, 1, 1, 4) for _ in range(2))
    for pages in ((2, 2), (2, 1)):
        add_pages(pool, 4)
        for layer, count in zip((gone, stays), pages, strict=True):
            assert layer.step(*(torch.randn(1, 1, 16 * count, 8) for _ in range(3)), None, 1.0) == 0
    gone.reset()
    held, _ = read(stays, 0, 0, 8, False).copy(), pool.info()
    waits = module.waits()
    assert pool.trim(0) == 1
    assert module.waits() == waits + 1
    assert np.array_equal(read(stays, 0, 0, 8, False), held)


def test_a_layer_keeps_its_pool_alive():
    pool, layer = make()
    step(pool, layer, *tokens((2, 2, 2, 16), 20))
    del pool
    assert positions(layer, 1, 1).tolist() == list(range(20))
    layer.reset()
    del layer


def test_layers_of_one_pool_go_in_any_order():
    pool = _core.Pool("float32", 8)
    layers = [_core.Layer(pool, 1, 1, 1, 1) for _ in range(4)]
    for i, layer in enumerate(layers):
        step(pool, layer, *tokens((1, 1, 1, 8), 20, seed=i))
    used = pool.info()[1]
    del layers[1], layer
    assert pool.info()[1] == used - 2
    del layers[0]
    del layers[-1]
    assert pool.info()[1] == 2
    assert positions(layers[0], 0, 0).tolist() == list(range(20))


def test_peak_is_kept_and_reset():
    pool, layer = make(rows=1, heads=1, group=1)
    step(pool, layer, *tokens((1, 1, 1, 16), 100), attend=False)
    evict(pool, layer, 0, [10], [np.arange(96)])
    assert pool.info()[1] == 1
    assert pool.info()[3] == 7
    pool.reset_peak()
    assert pool.info()[3] == 1


@pytest.mark.parametrize(
    ("slab", "error", "message"),
    [
        (lambda n: torch.zeros(n + 1, dtype=torch.uint8), ValueError, "multiple of"),
        (lambda n: torch.zeros(0, dtype=torch.uint8), ValueError, "multiple of"),
        (lambda n: torch.zeros(n, dtype=torch.float32), ValueError, "uint8"),
        (lambda n: torch.zeros(2, n, dtype=torch.uint8), ValueError, "1 dimensions"),
        (lambda n: torch.zeros(n + 1, dtype=torch.uint8)[1:], ValueError, "aligned to 64 bytes"),
        (lambda n: torch.zeros(2 * n, dtype=torch.uint8)[::2], ValueError, "slab"),  # not contiguous
        (lambda n: torch.zeros(64, dtype=torch.uint8)[:1].expand(n), ValueError, "slab"),  # one byte of memory
        (lambda n: np.zeros(n, np.uint8), TypeError, "torch tensor"),
        (lambda n: None, TypeError, "torch tensor"),
    ],
)
def test_slabs_that_do_not_fit(slab, error, message):
    pool = _core.Pool("float32", 16)
    with pytest.raises(error, match=message):
        pool.add_slab(slab(pool.page_bytes))
    assert pool.info() == (0, 0, 0, 0, 0)


def test_a_slab_is_lent_once():
    pool = _core.Pool("float32", 16)
    slab = torch.zeros(4 * pool.page_bytes, dtype=torch.uint8)
    pool.add_slab(slab)
    for again in (slab, slab[pool.page_bytes :], slab[-pool.page_bytes :]):
        with pytest.raises(ValueError, match="lent once only"):
            pool.add_slab(again)
    assert pool.info() == (4, 0, 4, 0, 1)


def test_a_slab_without_its_memory():
    pool = _core.Pool("float32", 16)
    slab = torch.zeros(4 * pool.page_bytes, dtype=torch.uint8)
    slab.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="no data"):
        pool.add_slab(slab)
    assert pool.info() == (0, 0, 0, 0, 0)
