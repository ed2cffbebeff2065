"""Head budgets by measured shares on every backend: the integers of `policy.profiled`'s form in Python."""

import numpy as np
import pytest
from backends import BACKENDS
from layers import RKV, slots

from reasonalloc import _core
from reasonalloc.policy.profiled import ProfiledHeads
from reasonalloc.policy.view import LayerView

pytestmark = pytest.mark.core
WINDOW, DIM = 3, 8


def expected(shares, lo, hi, total, protect):
    """Of a row, by the form in Python."""
    heads = ProfiledHeads(head_lo=lo, head_hi=hi)
    object.__setattr__(heads, "table", {5: shares})
    view = LayerView(0, 100, len(shares), WINDOW, 5, 20, protected=int(protect))
    return heads.shares([], int(total), view).tolist()


def route(shares, lo, hi):
    return 4, 1.0, lo, hi, 0.0, 0.0, np.asarray(shares, np.float64).tobytes()


def draw_shares(random, heads):
    """Of any proportions, some nothing or the same, seldom all nothing."""
    shares = random.random(heads) ** random.integers(1, 20) * 10.0 ** random.integers(-30, 30)
    shares[random.random(heads) < 0.2] = 0
    if random.random() < 0.2:
        shares[:] = random.integers(0, 3, heads)
    return shares


def draw_bounds(random):
    return float(random.choice([0.0, 0.25, 1.0, random.random()])), float(random.choice([1.0, 2.5, 1e6]))


def draw_cut(random, held):
    """Totals and protected positions of rows that hold so many slots, often where both just meet."""
    rows, heads = held.shape
    totals, protect = np.full(rows, -1), np.zeros(rows, np.int64)
    for row in range(rows):
        most = int(held[row].sum())
        if random.random() < 0.8 and most > heads * WINDOW:
            totals[row] = random.integers(heads * WINDOW, most)
        protect[row] = random.integers(0, held[row].max() + 5) if random.random() < 0.7 else 0
        if totals[row] >= 0 and random.random() < 0.3:
            protect[row] = totals[row] // heads - WINDOW + random.integers(-1, 2)
    return totals, np.maximum(protect, 0)


class Layer:
    """A layer with a pool of its own, which grows as it asks."""

    def __init__(self, backend, rows, heads):
        self.backend, self.heads = backend, heads
        self.pool = backend.pool("float32", DIM)
        self.core = _core.Layer(self.pool, rows, heads, heads, WINDOW, "rkv", 64)

    def step(self, random, count):
        q, k, v = (
            self.backend.tensor(random.standard_normal((self.core.rows, self.heads, count, DIM))) for _ in range(3)
        )
        while missing := self.core.step(q, k, v, None, 0.3):
            self.backend.add_pages(self.pool, missing)

    def cut(self, totals, protect, how):
        budgets, lost = (np.zeros((self.core.rows, self.heads), x) for x in (np.int64, np.float64))
        flags = np.zeros(self.core.rows, np.bool_)
        while missing := self.core.cut(totals, protect, RKV, how, budgets, lost, flags):
            self.backend.add_pages(self.pool, missing)
        return budgets, flags

    def budgets(self, totals, protect, how):
        """These alone: nothing is cut."""
        budgets, flags = np.zeros((self.core.rows, self.heads), np.int64), np.zeros(self.core.rows, np.bool_)
        self.core.cut_score(totals, None, flags)
        self.core.cut_allocate(protect, how, budgets)
        self.core.cut_abandon()
        return budgets, flags


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_cuts_give_the_integers_of_python(backend, heads):
    """Cut after cut, so that heads hold fewer protected tokens than there are, and budgets more than heads hold."""
    random = np.random.default_rng(heads)
    layer, compared, even = Layer(backend, 3, heads), 0, 0
    for _turn in range(max(6, round(40 * backend.effort))):
        layer.step(random, int(random.integers(5, 30)))
        held = slots(layer.core, heads)
        totals, protect = draw_cut(random, held)
        shares, bounds = draw_shares(random, heads), draw_bounds(random)
        budgets, flags = layer.cut(totals, protect, route(shares, *bounds))
        assert flags.tolist() == (totals >= 0).tolist()
        after = slots(layer.core, heads)
        for row in np.flatnonzero(flags):
            want = expected(shares, *bounds, totals[row], protect[row])
            assert budgets[row].tolist() == want
            assert after[row].tolist() == np.minimum(want, held[row]).tolist()
            compared += 1
            even += totals[row] <= heads * (protect[row] + WINDOW)
    assert compared > 8 and 0 < even < compared


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 33])
def test_many_budgets(heads):
    """Phase by phase, and given up after the budgets."""
    random, compared = np.random.default_rng(heads), 0
    layer = Layer(BACKENDS[0], 2, heads)
    layer.step(random, 60)
    for _ in range(400):
        totals, protect = draw_cut(random, slots(layer.core, heads))
        shares, bounds = draw_shares(random, heads), draw_bounds(random)
        budgets, flags = layer.budgets(totals, protect, route(shares, *bounds))
        for row in np.flatnonzero(flags):
            assert budgets[row].tolist() == expected(shares, *bounds, totals[row], protect[row])
            compared += 1
    assert compared > 500


def test_protected_positions_of_any_size():
    layer = Layer(BACKENDS[0], 1, 2)
    layer.step(np.random.default_rng(0), 40)
    for protect, want in ((-(2**63), [8, 23]), (0, [8, 23]), (12, [15, 16]), (13, [16, 15]), (2**63 - 1, [16, 15])):
        budgets, _ = layer.budgets(np.array([31]), np.array([protect]), route([1, 4], 0.25, 2.0))
        assert budgets.tolist() == [want]


@pytest.mark.parametrize(
    "how",
    [
        (4, 1.0, 0.25, 2.0, 0.0, 0.0),
        route([1, -1], 0.25, 2.0),
        route([1, np.nan], 0.25, 2.0),
        route([np.inf, 1], 0.25, 2.0),
        route([1, 1], 1.5, 2.0),
        route([1, 1], 0.25, 0.5),
        route([1, 1], np.nan, 2.0),
    ],
)
def test_what_is_refused(backend, how):
    layer = Layer(backend, 2, 2)
    layer.step(np.random.default_rng(0), 20)
    with pytest.raises(ValueError, match="cut"):
        layer.cut(np.full(2, 30), np.zeros(2, np.int64), how)
    with pytest.raises(ValueError, match="shares are float64, one for each of 2 heads, got 24 bytes"):
        layer.cut(np.full(2, 30), np.zeros(2, np.int64), route([1, 1, 1], 0.25, 2.0))
    assert (slots(layer.core, 2) == 20).all()
