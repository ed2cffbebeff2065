"""ra.allocate: whole shares that meet the total, keep their bounds and follow the definition."""

import itertools

import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import reasonalloc as ra
from reasonalloc.allocate import pyramid

pytestmark = pytest.mark.core

claims = st.lists(st.one_of(st.floats(0, 1e6, allow_subnormal=False), st.integers(0, 5)), min_size=1, max_size=40)
totals = st.integers(0, 5000)
gammas = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
lows = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])
highs = st.sampled_from([1.0, 1.5, 2.0, 7.0])


# ---- robustify -------------------------------------------------------------------------------------------------------


@given(claims, totals, gammas, lows, highs, st.floats(0, 1))
@settings(max_examples=500)
def test_shares_sum_and_keep_their_bounds(x, total, gamma, lo, hi, floor_share):
    n = len(x)
    floor = floor_share * (total // n)
    shares = ra.allocate.robustify(x, total, gamma, lo, hi, floor)
    assert shares.dtype == np.int64
    assert shares.shape == (n,)
    assert int(shares.sum()) == total
    assert (shares >= 0).all()
    least, most = np.ceil(max(lo * total / n, floor) - 1e-9), np.floor(hi * total / n + 1e-9)
    if n * least <= total:  # integers can keep the bound
        assert shares.min() >= least
    else:
        assert shares.min() >= least - 1
    if n * most >= total:
        assert shares.max() <= most
    else:
        assert shares.max() <= most + 1
    assert np.array_equal(shares, ra.allocate.robustify(x, total, gamma, lo, hi, floor))


@given(claims, totals, gammas, lows, highs)
@settings(max_examples=500)
def test_shares_are_the_one_scale_rounded(x, total, gamma, lo, hi):
    shares = ra.allocate.robustify(x, total, gamma, lo, hi)
    real = oracle.robustify_real(x, total, gamma, lo, hi)
    assert np.abs(shares - real).max() < 1 + 1e-6
    # largest remainder: nobody with a smaller part was rounded up past one with a larger part
    part = real - np.floor(real + 1e-9)
    up = shares > np.floor(real + 1e-9)
    if up.any() and (~up).any():
        assert part[up].min() >= part[~up].max() - 1e-6 * max(1, total)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), totals, st.sampled_from([0.25, 0.5, 1.0]), lows, highs)
def test_more_claim_never_means_less(x, total, gamma, lo, hi):
    shares = ra.allocate.robustify(x, total, gamma, lo, hi)
    order = np.argsort(x, kind="stable")
    for a, b in itertools.pairwise(order):
        if x[a] < x[b]:
            assert shares[a] <= shares[b]
        else:  # the same claim: the lower index has the odd slot
            assert shares[a] - shares[b] in (0, 1)


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=20), totals, st.randoms(use_true_random=False))
def test_order_of_claims_does_not_matter(x, total, random):
    order = list(range(len(x)))
    random.shuffle(order)
    shares = ra.allocate.robustify(x, total)
    shuffled = ra.allocate.robustify([x[i] for i in order], total)
    moved = shares[order]
    part = np.sort(np.mod(oracle.robustify_real(x, total), 1))
    if len(part) > 1 and np.diff(part).min() < 1e-7:  # ties: which of them has the odd slot depends on the order
        assert np.abs(moved - shuffled).max() <= 1
        assert np.array_equal(np.sort(moved), np.sort(shuffled))
    else:
        assert np.array_equal(moved, shuffled)


@given(claims, st.integers(1, 2000), st.floats(1e-6, 1e6))
def test_only_proportions_count(x, total, factor):
    assume(all(v == 0 or v * factor > 1e-200 for v in x))
    shares = ra.allocate.robustify(x, total)
    scaled = ra.allocate.robustify([v * factor for v in x], total)
    assert np.abs(shares - scaled).max() <= 1


def best_scale_by_force(x, total, least, most):
    """Every integer vector within the bounds: the one nearest to a multiple of sqrt(x) clipped."""
    real = oracle.robustify_real(x, total)
    best, found = np.inf, None

    def extend(prefix, left):
        nonlocal best, found
        if len(prefix) == len(x):
            if left == 0 and (cost := float(((np.array(prefix) - real) ** 2).sum())) < best - 1e-9:
                best, found = cost, prefix
            return
        for share in range(min(most, left), least - 1, -1):
            extend([*prefix, share], left - share)

    extend([], total)
    return found, best, real


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 14))
@settings(max_examples=150)
def test_no_other_integers_come_nearer(x, total):
    least, most = oracle.whole_bounds(len(x), total)
    shares = ra.allocate.robustify(x, total)
    _, cost, real = best_scale_by_force(x, total, least, most)
    assert float(((shares - real) ** 2).sum()) <= cost + 1e-6


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([1, 1, 1], 9), [3, 3, 3]),
        (([1, 1, 1], 10), [4, 3, 3]),
        (([0, 0, 0, 0], 6), [2, 2, 1, 1]),
        (([4, 1], 30), [20, 10]),  # square roots
        (([10**6, 1, 1, 1], 100), [50, 17, 17, 16]),  # twice the mean at most
        (([1, 10**6, 10**6, 10**6], 100), [6 + 1, 31, 31, 31]),  # a quarter of the mean at least
        (([5], 7), [7]),
        (([0], 7), [7]),
        (([3, 5, 1], 0), [0, 0, 0]),
        (([1, 2, 3], 1), [0, 0, 1]),  # fewer slots than shares
        (([1, 0, 0], 12, 0.5, 0.0, 3.0), [12, 0, 0]),
        (([9, 1], 10, 1.0, 0.0, 2.0), [9, 1]),
        (([9, 1], 10, 1.0, 0.0, 2.0, 3), [7, 3]),
        (([9, 1], 10, 0.0), [5, 5]),
        (([9, 1], 10, 1.0, 1.0, 1.0), [5, 5]),
    ],
)
def test_examples(arguments, expected):
    assert ra.allocate.robustify(*arguments).tolist() == expected


def test_large_totals_are_exact():
    for total in (10**9, 10**12 + 7, 2**40 + 1):
        shares = ra.allocate.robustify([3, 1, 4, 1, 5, 9, 2, 6], total)
        assert int(shares.sum()) == total
        assert np.abs(shares - oracle.robustify_real([3, 1, 4, 1, 5, 9, 2, 6], total)).max() < 2
    wide = ra.allocate.robustify(np.arange(5000), 123_457)
    assert int(wide.sum()) == 123_457


def test_what_x_may_be():
    expected = ra.allocate.robustify([1.0, 4.0, 9.0], 60)
    for x in ((1, 4, 9), np.array([1, 4, 9]), np.array([1, 4, 9], np.float32), np.array([9, 4, 1.0])[::-1]):
        assert np.array_equal(ra.allocate.robustify(x, 60), expected)
    assert np.array_equal(ra.allocate.robustify([1, 4, 9], np.int64(60)), expected)
    assert np.array_equal(ra.allocate.robustify([1, 4, 9], 60.0), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f([], 4), "non-empty"),
        (lambda f: f([[1, 2]], 4), "1-D"),
        (lambda f: f([1, float("nan")], 4), "finite"),
        (lambda f: f([1, float("inf")], 4), "finite"),
        (lambda f: f([1, -0.1], 4), "not negative"),
        (lambda f: f([1, 2], -1), "not be negative"),
        (lambda f: f([1, 2], 1.5), "whole number"),
        (lambda f: f([1, 2], True), "whole number"),
        (lambda f: f([1, 2], float("nan")), "whole number|cannot convert"),
        (lambda f: f([1, 2], 4, gamma=-1), "gamma"),
        (lambda f: f([1, 2], 4, gamma=float("nan")), "gamma"),
        (lambda f: f([1, 2], 4, lo=1.5), "bounds"),
        (lambda f: f([1, 2], 4, lo=-0.5), "bounds"),
        (lambda f: f([1, 2], 4, hi=0.5), "bounds"),
        (lambda f: f([1, 2], 4, hi=float("nan")), "bounds"),
        (lambda f: f([1, 2], 4, floor=-1), "floor"),
        (lambda f: f([1, 2], 4, floor=2.5), "floor of every share together exceeds the total of 4"),
        (lambda f: f([1, 2], 0, floor=1), "exceeds the total of 0"),
    ],
)
def test_robustify_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(ra.allocate.robustify)


# ---- route -----------------------------------------------------------------------------------------------------------

layers_of_scores = st.lists(
    st.lists(st.one_of(st.floats(-10, 10, width=32), st.integers(-2, 2)), max_size=30), min_size=1, max_size=6
)


@given(layers_of_scores, st.integers(0, 8), st.integers(0, 300), st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=300)
def test_routing_is_pooled_top_k_robustified(scores, window, more, mu):
    scores = [np.array(s, np.float32) for s in scores]
    heads = len(scores)
    total = heads * window + more
    shares = ra.allocate.route(scores, total, window=window, mu=mu)
    assert int(shares.sum()) == total
    floor = max(mu * total / heads, window)
    assert shares.min() >= min(window, total // heads)
    if heads * np.ceil(floor - 1e-9) <= total:
        assert shares.min() >= np.ceil(floor - 1e-9)
    real = oracle.robustify_real(oracle.claims(scores, total, window), total, floor=floor)
    assert np.abs(shares - real).max() < 1 + 1e-6


def test_routing_examples():
    scores = [np.array([9.0, 8, 7, 6]), np.array([5.0, 1, 1, 1]), np.array([0.0, 0, 0, 0])]
    # the six best are 9 8 7 6 5 1, and all the ties at 1 count: claims 4, 4, 0
    assert oracle.claims(scores, 6).tolist() == [4, 4, 0]
    shares = ra.allocate.route(scores, 6, mu=0.0, lo=0.0, hi=3.0, gamma=1.0)
    assert shares.tolist() == [3, 3, 0]
    assert ra.allocate.route(scores, 6).min() >= 1  # the floor of a quarter of the mean, and whole
    assert ra.allocate.route(scores, 9, window=3).tolist() == [3, 3, 3]
    assert ra.allocate.route(scores, 600).tolist() == [200, 200, 200]  # every token is chosen
    assert ra.allocate.route([np.zeros(0), np.zeros(0)], 7).tolist() == [4, 3]
    assert ra.allocate.route(scores, 8, heads="uniform").tolist() == [3, 3, 2]


def test_routing_counts_scores_at_the_threshold():
    scores = [np.array([1.0] * 10 + [0.0] * 10), np.array([1.0] * 2 + [0.0] * 18)]
    assert oracle.claims(scores, 12).tolist() == [10, 2]
    real = oracle.robustify_real([10, 2], 12)
    assert np.abs(ra.allocate.route(scores, 12) - real).max() < 1


@given(layers_of_scores, st.integers(0, 8), st.integers(0, 300), st.sampled_from([0.0, 0.2, 1.0]))
@settings(max_examples=200)
def test_pooled_shares_keep_the_safeguard(scores, window, more, safeguard):
    scores = [np.array(s, np.float32) for s in scores]
    heads = len(scores)
    total = heads * window + more
    shares = ra.allocate.route(scores, total, heads="pooled", window=window, safeguard=safeguard)
    assert int(shares.sum()) == total
    assert shares.min() >= max(window, np.floor(safeguard * total / heads))
    claims = oracle.claims(scores, total, window).astype(float)
    claims *= total / claims.sum() if claims.sum() else 1
    mixed = (1 - safeguard) * claims + safeguard * total / heads
    floor = max(np.floor(safeguard * total / heads), window)
    real = oracle.robustify_real(mixed, total, 1.0, 0.0, float(heads), floor)
    assert np.abs(shares - real).max() < 1 + 1e-6


def test_a_single_head_takes_all():
    for heads in ("route", "pooled", "uniform"):
        assert ra.allocate.route([np.arange(50.0)], 20, heads=heads, window=4).tolist() == [20]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, s: f(s, 10, heads="best"), "heads must be one of .*'best'"),
        (lambda f, s: f([], 10), "none"),
        (lambda f, s: f([*s, np.array([np.nan])], 10), "finite"),
        (lambda f, s: f([*s, np.array([np.inf])], 10), "finite"),
        (lambda f, s: f(s, 5, window=3), "total of 5 is below the window of every head"),
        (lambda f, s: f(s, 5, window=3, heads="uniform"), "below the window"),
        (lambda f, s: f(s, -1), ""),
        (lambda f, s: f(s, 10, window=-1), ""),
        (lambda f, s: f(s, 10.5), "whole number"),
        (lambda f, s: f(s, 10, mu=1.5), ""),
        (lambda f, s: f(s, 10, mu=float("nan")), ""),
        (lambda f, s: f(s, 10, heads="pooled", safeguard=-0.1), ""),
        (lambda f, s: f(s, 10, lo=2.0), ""),
        (lambda f, s: f(s, 10, hi=0.0), ""),
        (lambda f, s: f(s, 10, gamma=-1.0), ""),
    ],
)
def test_route_errors(call, message):
    with pytest.raises(ValueError, match=message or None):
        call(ra.allocate.route, [np.arange(8.0), np.arange(8.0)])


# ---- Layers ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 20_000), st.sampled_from([1.0, 5.0, 20.0]), st.floats(0, 1))
def test_pyramids_fall_with_depth(layers, total, beta, floor_share):
    floor = floor_share * (total // layers)
    shares = pyramid(layers, total, beta, floor)
    assert int(shares.sum()) == total
    assert (np.diff(shares) <= 0).all()
    if layers * np.ceil(floor - 1e-9) <= total:
        assert shares.min() >= np.ceil(floor - 1e-9)
    if layers > 1:
        mean = total / layers - floor
        assert abs(shares[-1] - (mean / beta + floor)) <= 1 + 1e-6
        assert abs(shares[0] - (2 * mean - mean / beta + floor)) <= 1 + 1e-6


def test_pyramid_errors():
    with pytest.raises(ValueError, match="beta must be at least 1"):
        pyramid(4, 100, 0.5)
    with pytest.raises(ValueError):
        pyramid(4, 100, 20.0, 26.0)
