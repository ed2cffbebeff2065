"""A cut of several layers on every backend: totals by the scores of all, and eviction from all or none."""

import numpy as np
import oracle
import pytest
from conformance.test_cuts import DIM, HEADS, ROUTE, WINDOW, Layer, config, new_tokens
from layers import positions, set_centres, slots, snapshot

from reasonalloc import _core

pytestmark = pytest.mark.core
ROWS, TOTAL, PROTECT = 2, 3 * HEADS * 20, np.array([5, 0])


def fed(backend, page_format, scorer, seed=0, count=3):
    """Layers of one pool, whose row 1 is shorter."""
    random = np.random.default_rng(seed)
    layers = [Layer(backend, page_format, ROWS, scorer) for _ in range(count)]
    for layer in layers[1:]:
        layer.pool = layers[0].pool
        layer.core = _core.Layer(layer.pool, ROWS, HEADS, HEADS * 3, WINDOW, scorer, 12)
        if scorer == "triattention":
            set_centres(layer.core, HEADS * 3, DIM)
    for layer in layers:
        layer.step([new_tokens(backend, random, n) for n in (61, 37)])
    return layers


def score(layers, scorer):
    """Scores [L][R][H] of all layers, whose cut has begun."""
    found = []
    for layer in layers:
        layer.core.cut_score(np.full(ROWS, HEADS * WINDOW), config(scorer), np.zeros(ROWS, np.bool_))
        own = []
        for row, tokens in enumerate((61, 37)):
            flat = np.zeros(HEADS * (tokens - WINDOW), np.float32)
            layer.core.cut_scores(row, flat)
            own.append(np.split(flat, HEADS))
        found.append(own)
    return found


def choose(layers, totals):
    for i, layer in enumerate(layers):
        layer.core.cut_set_totals(np.ascontiguousarray(totals[:, i]))
        budgets = np.zeros((ROWS, HEADS), np.int64)
        layer.core.cut_allocate(PROTECT, ROUTE, budgets)
        layer.core.cut_choose(PROTECT, budgets, np.zeros((ROWS, HEADS)))


def test_totals_are_the_oracles_and_evicted_to(backend, page_format, scorer):
    layers = fed(backend, page_format, scorer)
    cores, scores = [x.core for x in layers], score(layers, scorer)
    totals = np.full((ROWS, 3), -7)
    _core.cut_route_layers(cores, np.array([TOTAL, -1]), PROTECT, 10.0, totals)
    assert (totals[1] == -7).all()  # it was not asked for
    _core.cut_route_layers(cores, np.full(ROWS, TOTAL), PROTECT, 10.0, totals)
    for row, base in enumerate(PROTECT):
        beyond = [[s[base:] for s in layer[row]] for layer in scores]
        expected = oracle.layer_totals(beyond, TOTAL - 3 * HEADS * base, WINDOW) + HEADS * base
        assert totals[row].tolist() == expected.tolist()
    choose(layers, totals)
    while (missing := _core.cut_apply_layers(cores))[1]:
        backend.add_pages(layers[missing[0]].pool, missing[1])
    held = np.array([slots(core, HEADS).sum(1) for core in cores]).T
    assert held.tolist() == totals.tolist()
    for core in cores:
        for head in range(HEADS):
            assert positions(core, 0, head)[:5].tolist() == list(range(5))


def test_all_or_none(backend, page_format):
    """Pages are shared, and those of the first layer are there."""
    layers = fed(backend, page_format, "recency")
    cores = [x.core for x in layers]
    twins = [core.copy() for core in cores]
    score(layers, "recency")
    choose(layers, np.full((ROWS, 3), 2 * 20))
    backend.add_pages(layers[0].pool, 9)  # a layer needs 8
    before = [snapshot(core) for core in cores]
    score(layers, "recency")  # a look at positions begins nothing, but a device's lists were asked for
    choose(layers, np.full((ROWS, 3), 2 * 20))
    which, missing = _core.cut_apply_layers(cores)
    while missing:
        assert which > 0 or missing > 0
        for core in cores:
            assert slots(core, HEADS).tolist() == [[61] * HEADS, [37] * HEADS]
        backend.add_pages(layers[which].pool, 1)
        which, missing = _core.cut_apply_layers(cores)
    assert all(slots(core, HEADS).sum() == 2 * 40 for core in cores)
    assert [snapshot(twin) for twin in twins] == before


def test_what_they_refuse(backend):
    layers = fed(backend, "float32", "recency")
    cores, totals = [x.core for x in layers], np.full((ROWS, 3), -7)
    before = [snapshot(core) for core in cores]
    good = (np.full(ROWS, TOTAL), PROTECT, 10.0, totals)

    def route(given=cores, **changes):
        names = ("totals", "protect", "r_max", "out")
        _core.cut_route_layers(given, *[changes.get(n, x) for n, x in zip(names, good, strict=True)])

    with pytest.raises(ValueError, match="no cut of all layers has begun"):
        route()
    with pytest.raises(ValueError, match="no cut has begun"):
        cores[0].cut_set_totals(np.zeros(ROWS, np.int64))
    score(layers, "recency")
    for given, error, message in [
        ([], ValueError, "at least one layer"),
        ([cores[0], cores[0]], ValueError, "named twice"),
        ([cores[0], 3], TypeError, "_core.Layer objects"),
        (3, TypeError, "not iterable"),
    ]:
        for call in (route, _core.cut_apply_layers):
            with pytest.raises(error, match=message):
                call(given)
    for changes in ({"totals": np.zeros(3, np.int64)}, {"protect": np.zeros(ROWS)}, {"out": np.zeros((ROWS, 2))}):
        with pytest.raises((ValueError, TypeError)):
            route(**changes)
    for r_max in (0.9, float("nan")):
        with pytest.raises(ValueError, match="r_max is below 1"):
            route(r_max=r_max)
    for total in (3 * HEADS * WINDOW - 1, 3 * HEADS * 61 + 1):
        with pytest.raises(ValueError, match="below the windows or above what layers hold"):
            route(totals=np.full(ROWS, total))
    assert (totals == -7).all()
    with pytest.raises(ValueError, match="nothing was chosen"):
        _core.cut_apply_layers(cores)
    cores[1].cut_abandon()
    for call in (route, lambda: _core.cut_apply_layers(cores)):
        with pytest.raises(ValueError, match="no cut of all layers has begun"):
            call()
    assert [snapshot(core) for core in cores] == before
    assert _core.cut_route_layers(cores[:1], np.full(ROWS, -1), PROTECT, 10.0, np.zeros((ROWS, 1), np.int64)) is None
