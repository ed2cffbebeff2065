"""Layer totals by the scores of all layers: the oracle, and what must hold of any."""

import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import reasonalloc as ra
from reasonalloc import _core

pytestmark = pytest.mark.core

values = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 0.5, -1.0, 1e-40, -1e-40, 3e38, -3e38]), st.floats(-2, 2, width=32))


@st.composite
def cases(draw):
    """(scores [L][H], window, total, r_max), total between the windows and what is held."""
    layers, heads, window = draw(st.integers(1, 8)), draw(st.integers(1, 3)), draw(st.integers(0, 5))
    longest = draw(st.sampled_from([3, 12, 40]))
    lists = [[draw(st.lists(values, max_size=longest)) for _ in range(heads)] for _ in range(layers)]
    held = sum(len(x) for layer in lists for x in layer)
    total = layers * heads * window + draw(st.integers(0, held))
    return lists, window, total, draw(st.sampled_from([1.0, 1.25, 2.0, 3.7, 10.0, 1e6]))


@given(cases())
@settings(max_examples=600)
@example(([[[1.0] * 9], [[0.0] * 9], [[0.0] * 9]], 2, 15, 1.0))  # one layer has all, and may have but the mean
@example(([[[1.0] * 20], [[0.0]], [[0.0]]], 0, 22, 1.0))  # the others hold too little for that
def test_they_are_the_oracles(case):
    scores, window, total, r_max = case
    found = ra.allocate.route_layers(scores, total, window=window, r_max=r_max)
    assert found.dtype == np.int64
    assert found.tolist() == oracle.layer_totals(scores, total, window, r_max).tolist()


@given(cases())
@settings(max_examples=300)
def test_they_sum_keep_their_bounds_and_follow_the_claims(case):
    scores, window, total, r_max = case
    found = ra.allocate.route_layers(scores, total, window=window, r_max=r_max)
    windows = len(scores[0]) * window
    held = np.array([sum(map(len, layer)) for layer in scores])
    assert found.sum() == total
    assert (found >= windows).all()
    assert (found <= held + windows).all()
    chosen = total - len(scores) * windows
    bound = max(np.floor(r_max * chosen / len(scores)), np.ceil(chosen / len(scores)))
    over = found - windows > bound
    if over.any():  # only where the others are full
        assert np.minimum(held, bound).sum() < chosen
        assert (found - windows >= np.minimum(held, bound)).all()
    best = np.sort(np.concatenate([np.float32(x) for layer in scores for x in layer]))[::-1]
    if 0 < chosen < len(best):
        claims = np.array([sum(int((np.float32(x) >= best[chosen - 1]).sum()) for x in layer) for layer in scores])
        if claims.sum() == chosen and (claims <= bound).all():  # no ties, no bound: just what was claimed
            assert (found - windows == claims).all()


@given(cases())
@settings(max_examples=100)
def test_a_layer_with_more_of_the_best_never_gets_less(case):
    scores, window, total, r_max = case
    chosen = total - len(scores) * len(scores[0]) * window
    best = np.sort(np.concatenate([np.float32(x) for layer in scores for x in layer]))[::-1]
    if not 0 < chosen < len(best):
        return
    found = ra.allocate.route_layers(scores, total, window=window, r_max=r_max)
    claims = [sum(int((np.float32(x) >= best[chosen - 1]).sum()) for x in layer) for layer in scores]
    held = [sum(map(len, layer)) for layer in scores]
    bound = len(scores[0]) * window + max(np.floor(r_max * chosen / len(scores)), np.ceil(chosen / len(scores)))
    for a in range(len(scores)):
        for b in range(len(scores)):
            if claims[a] > claims[b] and held[a] >= held[b]:
                assert found[a] >= found[b] - (found[b] > bound)  # beyond the bound the odd slot has no claim


def test_no_claims_no_scores():
    assert ra.allocate.route_layers([[[]], [[]]], 6, window=3).tolist() == [3, 3]
    assert ra.allocate.route_layers([[[1.0], []]], 0).tolist() == [0]
    assert ra.allocate.route_layers([[[5.0] * 4], [[5.0] * 4], [[5.0] * 4]], 7).tolist() == [3, 2, 2]  # ties


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([], {"total": 1}, "as many arrays"),
        ([[[1.0]], [[1.0], [2.0]]], {"total": 1}, "as many arrays"),
        ([[[np.nan]]], {"total": 1}, "finite"),
        ([[[1.0]]], {"total": 1, "r_max": 0.5}, "r_max must be at least 1, got 0.5"),
        ([[[1.0]]], {"total": 1, "r_max": float("nan")}, "r_max must be at least 1"),
        ([[[1.0]]], {"total": 2}, "above what the layers hold"),
        ([[[1.0]]], {"total": 1, "window": 2}, "below the windows"),
        ([[[1.0]]], {"total": 0.5}, "whole number"),
        ([[[1.0]]], {"total": -1}, "layer totals"),
    ],
)
def test_refusals(scores, options, message):
    with pytest.raises(ValueError, match=message):
        ra.allocate.route_layers(scores, **options)


def test_the_cores_own_refusals():
    out = np.full(2, -7)
    good = (np.zeros(4, np.float32), np.array([2, 2]), 1, 0, 2, 10.0, out)
    _core.route_layers(*good)
    assert out.tolist() == [1, 1]
    for i, bad, message in [
        (1, np.array([2, 3]), "sum to the number"),
        (1, np.array([-1, 5]), "sum to the number"),
        (2, 3, "whole layers"),
        (2, 0, "whole layers"),
        (6, np.zeros(3, np.int64), "out"),
        (0, np.zeros(4), "scores"),
        (0, np.full(4, np.inf, np.float32), "layer totals"),
    ]:
        out[:] = -7
        with pytest.raises(ValueError, match=message):
            _core.route_layers(*[bad if j == i else x for j, x in enumerate(good)])
        assert (out == -7).all()
