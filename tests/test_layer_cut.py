"""_core.Layer cut: scores, routes and evictions against the oracle."""

import layers
import numpy as np
import oracle
import pytest
import torch
from layers import (
    DTYPES,
    RKV,
    ROUTE,
    add_pages,
    assert_same,
    cut,
    evict,
    make,
    pages_for,
    positions,
    read,
    slots,
    snapshot,
    step,
    tokens,
)

from reasonalloc import _core

pytestmark = pytest.mark.core


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scorer", _core.scorers())
@pytest.mark.parametrize("allocator", [0, 1, 2])
def test_compress_is_score_route_and_evict(isa, dtype, scorer, allocator):
    shape = rows, heads, _group, _dim = (3, 3, 2, 24)
    score, route = (scorer, 0.3, 0.5, 5, 42), (allocator, 0.5, 0.25, 2.0, 0.25, 0.2)
    pairs = [make(dtype, *shape, scorer=scorer) for _ in range(2)]
    real = torch.ones(rows, 90, dtype=torch.bool)
    real[1, :60] = False
    q, k, v = tokens(shape, 90, dtype)
    for pool, layer in pairs:
        step(pool, layer, q, k, v, real, attend=False)
    totals, protect = [120, 100, -1], [10, 0, 0]  # the second row holds less than that, the third is left alone
    budgets, lost, flags = cut(*pairs[0], heads, totals, protect, score, route)
    assert flags.tolist() == [True, False, False]
    pool, layer = pairs[1]
    flat = np.empty(heads * 86, np.float32)
    layers.scores(layer, 0, score, flat, 120, protect=10)
    beyond = np.concatenate([x[10:] for x in np.split(flat, heads)])  # what is protected is not routed
    expected = np.empty(heads, np.int64)
    _core.route(beyond, np.full(heads, 76, np.int64), 4, 120 - 10 * heads, route, expected)
    expected += 10
    lost_apart = evict(pool, layer, 0, expected, np.split(flat, heads), 10)
    assert budgets[0].tolist() == expected.tolist()
    assert (budgets[1:] == -7).all()
    assert np.array_equal(lost[0], lost_apart)
    assert_same(snapshot(pairs[0][1]), snapshot(layer))
    assert slots(layer, heads)[0].tolist() == np.minimum(expected, 90).tolist()


def test_scores_of_a_layer_are_those_of_dense_keys(isa):
    shape = _rows, heads, group, _dim = (2, 2, 3, 32)
    for dtype in DTYPES:
        pool, layer = make(dtype, *shape, window=8)
        q, k, v = tokens(shape, 75, dtype)
        step(pool, layer, q, k, v, attend=False)
        flat = np.empty(heads * 67, np.float32)
        layers.scores(layer, 1, RKV, flat)
        for h, own in enumerate(np.split(flat, heads)):
            queries = q[1, h * group : (h + 1) * group, -8:].double().numpy()
            expected = oracle.rkv(queries, k[1, h].double().numpy())
            np.testing.assert_allclose(own, expected, atol=1e-5, rtol=0)


def test_positions_and_hashes_as_scores():
    shape = _rows, heads, _group, _dim = (2, 2, 1, 8)
    pool, layer = make("float32", *shape)
    real = torch.ones(2, 30, dtype=torch.bool)
    real[0, :11] = False
    q, k, v = tokens(shape, 30)
    step(pool, layer, q, k, v, real, attend=False)
    evict(pool, layer, 1, [20, 30], [np.arange(26) % 5] * 2)
    recency, random = [], []
    for row in (0, 1):
        flat = np.empty(int(np.maximum(slots(layer, heads)[row] - 4, 0).sum()), np.float32)
        layers.scores(layer, row, ("recency", 0.1, 0.5, 7, 0), flat)
        recency.append(flat.copy())
        layers.scores(layer, row, ("random", 0.1, 0.5, 7, 99), flat)
        random.append(flat.copy())
    older = [positions(layer, 1, h)[:-4] for h in (0, 1)]
    assert recency[1].tolist() == np.concatenate(older).tolist()
    assert (np.unique(np.concatenate(random)).size) > 30
    # the same position of the same head has the same number in every row
    table = dict(zip(range(15), random[0][:15], strict=True))
    assert all(table[p] == x for p, x in zip(older[0], random[1], strict=False) if p in table)
    flat = np.empty_like(random[1])
    layers.scores(layer, 1, ("random", 0.1, 0.5, 7, 100), flat)
    assert not np.array_equal(flat, random[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_lost_mass(isa, dtype):
    shape = _rows, _heads, _group, _dim = (1, 2, 3, 16)
    pool, layer = make(dtype, *shape)
    q, k, v = tokens(shape, 60, dtype)
    step(pool, layer, q, k, v, attend=False)
    scores = [np.random.default_rng(h).random(56) for h in (0, 1)]
    lost = evict(pool, layer, 0, [13, 60], scores)
    stay = {*oracle.select(scores[0], 9), *range(56, 60)}
    mass = oracle.softmax(q[0, :3, -1].double().numpy() @ k[0, 0].double().numpy().T / 4)
    expected = mass[:, [i for i in range(60) if i not in stay]].sum(1).mean()
    np.testing.assert_allclose(lost, [expected, 0], atol=1e-6)


def test_ties_go_to_the_newer_token():
    pool, layer = make(rows=1, heads=1, group=1)
    step(pool, layer, *tokens((1, 1, 1, 16), 30), attend=False)
    evict(pool, layer, 0, [14], [np.zeros(26)])
    assert positions(layer, 0, 0).tolist() == list(range(16, 30))
    evict(pool, layer, 0, [10], [np.ones(10)], protect=18)  # 16 and 17 go last
    assert positions(layer, 0, 0).tolist() == [16, 17, 22, 23, 24, 25, 26, 27, 28, 29]
    evict(pool, layer, 0, [5], [np.arange(6)], protect=18)  # too few slots for all that is protected
    assert positions(layer, 0, 0).tolist() == [17, 26, 27, 28, 29]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(budgets=[3, 50]), "below the window"),
        (lambda a: a.update(budgets=[-1, 50]), "below the window"),
        (lambda a: a["scores"][1].__setitem__(3, np.nan), "scores"),
        (lambda a: a["scores"][0].__setitem__(0, np.inf), "scores"),
        (lambda a: a["scores"].pop(), "items"),
        (lambda a: a.update(budgets=[9]), "items"),
    ],
)
def test_a_refused_eviction_changes_nothing(change, message):
    pool, layer = make(rows=1)
    step(pool, layer, *tokens((1, 2, 2, 16), 60), attend=False)
    arguments = {"budgets": [10, 10], "scores": [np.random.default_rng(h).random(56) for h in (0, 1)]}
    change(arguments)
    before, info = snapshot(layer), pool.info()
    with pytest.raises(ValueError, match=message):
        evict(pool, layer, 0, **arguments)
    assert_same(snapshot(layer), before)
    assert pool.info() == info


def test_a_shared_row_needs_pages_to_be_cut():
    pool, layer = make(rows=1, heads=2)
    step(pool, layer, *tokens((1, 2, 2, 16), 64), attend=False)
    layer.reorder(np.zeros(3, np.int64))
    assert pool.info()[1:3] == (8, 0)
    before = snapshot(layer)
    scores, lost = np.tile(np.arange(60, dtype=np.float32), 2), np.zeros(2)
    assert layers.evict_once(layer, 1, np.array([20, 20], np.int64), scores, 0, lost) == 4
    assert_same(snapshot(layer), before)
    add_pages(pool, 4)
    assert layers.evict_once(layer, 1, np.array([20, 20], np.int64), scores, 0, lost) == 0
    assert pool.info()[1:3] == (12, 0)
    assert positions(layer, 1, 0).tolist() == list(range(44, 64))
    for row in (0, 2):
        assert positions(layer, row, 1).tolist() == list(range(64))
    keys = [read(layer, r, 0, 16, False) for r in range(3)]
    assert np.array_equal(keys[0], keys[2])
    assert np.array_equal(keys[0][44:], keys[1])


def test_a_cut_that_lacks_pages_changes_nothing():
    pool, layer = make(rows=1, heads=2)
    step(pool, layer, *tokens((1, 2, 2, 16), 64), attend=False)
    layer.reorder(np.zeros(3, np.int64))
    arguments = (np.full(3, 40, np.int64), np.zeros(3, np.int64), RKV, ROUTE)
    budgets, lost, flags = np.zeros((3, 2), np.int64), np.zeros((3, 2)), np.zeros(3, np.bool_)
    calls = 0
    before = snapshot(layer)
    while missing := layer.cut(*arguments, budgets, lost, flags):
        assert_same(snapshot(layer), before)
        assert not flags.any()
        add_pages(pool, missing)
        calls += 1
    assert calls == 1
    assert flags.all()
    assert (budgets.sum(1) == 40).all()
    assert np.array_equal(slots(layer, 2), budgets)
    assert len({layer.positions(r, 0) for r in range(3)}) == 1
    assert pool.info()[1] == sum(pages_for(n) for n in budgets.reshape(-1))
