"""robustify far out: exponents up to Config's 16, totals up to 10**9, against 200 decimal digits."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

import reasonalloc as ra

pytestmark = pytest.mark.core

LEAST_CLAIM = Fraction(1, 10**9)  # of the largest: what a claim of nothing counts as


def bounds(n, total, lo, hi, floor):
    """Whole bounds of a share, the nearest ones outside where integers cannot keep them."""
    mean, lo, hi, floor = Fraction(total, n), Fraction(lo), Fraction(hi), Fraction(floor)
    low, high = max(lo * mean, floor), min(hi * mean, Fraction(total))
    least, most = -(-low.numerator // low.denominator), high.numerator // high.denominator
    if least > mean:
        least = low.numerator // low.denominator
    if most < mean:
        most = -(-mean.numerator // mean.denominator)
    return least, most


def exact(x, total, gamma, lo=0.25, hi=2.0, floor=0.0):
    """The real shares: clip(s * claim**gamma) for the one s that meets the total, by trying every corner of the sum."""
    with mp.workdps(200):
        least, most = map(mpf, bounds(len(x), total, lo, hi, floor))
        top = max(map(Fraction, x))
        claims = [max(Fraction(v) / top, LEAST_CLAIM) if top else Fraction(1) for v in x]
        y = [mpf(c.numerator) ** gamma / mpf(c.denominator) ** gamma for c in claims]
        if least * len(x) >= total:
            return [least] * len(x)

        def shares(s):
            return [min(max(s * v, least), most) for v in y]

        below = mpf(0)
        for corner in sorted({bound / v for v in y for bound in (least, most)}):
            if sum(shares(corner)) >= total:
                middle = (below + corner) / 2  # between two corners the same ones are free to grow
                free = [v for v in y if least < middle * v < most]
                fixed = sum(share for v, share in zip(y, shares(middle), strict=True) if not least < middle * v < most)
                return shares((total - fixed) / sum(free)) if free else shares(corner)
            below = corner
        return shares(below)


def rounded(real, total):
    """Largest remainder, ties to the lower index -> (shares, how near the nearest tie of two parts is)."""
    with mp.workdps(200):
        whole = [int(mp.floor(r + mpf(10) ** -150)) for r in real]
        parts = [r - w for r, w in zip(real, whole, strict=True)]
        order = sorted(range(len(real)), key=lambda i: (-parts[i], i))
        for i in order[: total - sum(whole)]:
            whole[i] += 1
        edges = sorted([mpf(0), *parts, mpf(1)])
        return whole, float(min(b - a for a, b in itertools.pairwise(edges)))


def check(x, total, gamma, lo=0.25, hi=2.0, floor=0.0):
    shares = ra.allocate.robustify(x, total, gamma, lo, hi, floor)
    real = exact(x, total, gamma, lo, hi, floor)
    assert int(shares.sum()) == total
    assert float(abs(sum(real) - total)) <= len(x)  # whole bounds may leave a slot or so over
    slack = 1 + 1e-12 * total + 1e-6
    assert max(abs(int(s) - float(r)) for s, r in zip(shares, real, strict=True)) < slack, (
        shares,
        list(map(float, real)),
    )
    expected, gap = rounded(real, total)
    if gap > 1e-6 + 1e-12 * total:
        assert shares.tolist() == expected


def test_the_oracle_itself():
    assert list(map(float, exact([0, 1, 3], 300, 16, lo=0)))[1:] == [100, 200]
    assert list(map(float, exact([1, 1, 4], 60, 1, lo=0))) == [10, 10, 40]
    assert list(map(float, exact([1, 1, 4], 60, 1, lo=0, hi=1.5))) == [15, 15, 30]
    assert list(map(float, exact([0, 0, 0], 30, 2))) == [10, 10, 10]
    assert rounded([mpf("1.5"), mpf("1.5")], 3) == ([2, 1], 0.0)


def test_a_high_power_follows_the_claims():
    assert ra.allocate.robustify([0, 1, 3], 300, gamma=16, lo=0).tolist() == [0, 100, 200]


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 4, 8, 12, 12.7, 12.8, 13, 14.5, 16])
@pytest.mark.parametrize("x", [[0, 1, 3], [1, 2, 3, 4, 5], [1e-6, 1e6, 1.0], [0, 0, 7], [5, 5, 0, 1], [1e-300, 1e300]])
@pytest.mark.parametrize(("lo", "hi"), [(0.25, 2.0), (0.0, 2.0), (0.0, 1e6), (1.0, 1.0)])
def test_every_power(x, gamma, lo, hi):
    for total in (0, 7, 300, 12_345, 10**9):
        check(x, total, gamma, lo, hi)


@given(
    st.lists(st.one_of(st.floats(0, 1e9, allow_subnormal=False), st.integers(0, 9)), min_size=1, max_size=24),
    st.one_of(st.integers(0, 5000), st.integers(0, 10**9)),
    st.one_of(st.sampled_from([0, 0.5, 1, 12.75, 12.76, 16]), st.floats(0, 16)),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from([1.0, 2.0, 100.0, 1e6]),
    st.floats(0, 1),
)
@settings(max_examples=300)
def test_any(x, total, gamma, lo, hi, share):
    check(x, total, gamma, lo, hi, floor=share * (total // len(x)))


def test_routing_by_a_high_power():
    """The two levels have one robustify: a head whose scores are all the best takes what the others cannot hold."""
    rng = np.random.default_rng(0)
    best, worst = rng.uniform(1, 2, 200), rng.uniform(0, 1, 200)
    shares = ra.allocate.route([best, worst, worst], 120, window=8, gamma=16, lo=0.0, hi=3.0, mu=0.0)
    claims = [8 + 96, 8, 8]
    assert shares.tolist() == rounded(exact(claims, 120, 16, 0.0, 3.0, 8), 120)[0]
