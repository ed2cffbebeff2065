"""Intervals, and tests of paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from reasonalloc.lab.evaluate.statistics import (
    bootstrap,
    holm,
    paired,
    permutation_test,
    picks,
    proportion_interval,
    proportion_mean,
    sign_test,
)

pytest.importorskip("scipy")


def test_where_all_problems_agree_the_interval_still_has_a_width():
    """Wilson's, by its formula; elsewhere the bootstrap's, as it was."""
    z = 1.959963984540054

    def wilson(share, n):
        middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
        return [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)]

    for scores, share in (([0.5, 0.5], 0.5), ([1.0] * 4, 1.0), ([0.0] * 8, 0.0), ([1.0], 1.0)):
        found = proportion_mean(scores, picks(len(scores), 0))
        assert found.mean == share and [found.low, found.high] == pytest.approx(wilson(share, len(scores)), abs=1e-12)
    third = proportion_mean([1 / 3] * 4, picks(4, 0))  # of 4 problems 1.33 are right: from 1 to 2 of them
    assert [third.low, third.high] == pytest.approx([wilson(1 / 4, 4)[0], wilson(2 / 4, 4)[1]])
    mixed = [0.0, 1.0, 1.0, 0.5]
    assert proportion_mean(mixed, picks(4, 0)) == bootstrap(mixed, picks(4, 0))


def test_the_sign_test():
    assert sign_test(0, 0) == 1.0
    assert sign_test(6, 0) == pytest.approx(2 / 64)
    assert sign_test(3, 5) == sign_test(5, 3) == pytest.approx(186 / 256)  # 2 * (1 + 8 + 28 + 56) / 2^8


def test_the_permutation_test():
    """Against counting by hand, scipy's, and Holm's rule by hand."""
    stats = pytest.importorskip("scipy.stats")
    assert permutation_test([0.0, 0.0]) == 1.0
    assert permutation_test([1.0, 1.0, 1.0]) == 2 / 8
    assert permutation_test([1.0, 2.0, -1.0, 0.0]) == 6 / 8  # |+-1 +-2 +-1| is 4, 2, 2, 0, each twice
    for n in (9, 40):
        x = np.random.default_rng(n).normal(0.3, 1, n)
        theirs = stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=20_000, rng=0).pvalue
        assert permutation_test(x.tolist()) == pytest.approx(theirs, abs=0.01)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_paired():
    result = paired("x", [1, 1, 0.5, 0], [0, 1, 0, 1], picks(4, 0))
    assert (result.wins, result.losses, result.difference.mean) == (2, 1, 0.125)


def test_intervals():
    low, high = proportion_interval(8, 8)
    assert high == 1 and 0.6 < low < 0.7
    assert proportion_interval(0, 8) == (0.0, pytest.approx(1 - low))
    measure = bootstrap([0.0, 1.0] * 50, picks(100, 0))
    assert measure.mean == 0.5 and 0.35 < measure.low < 0.45 < 0.55 < measure.high < 0.65
    assert bootstrap([1.0], picks(1, 0)).low is None
