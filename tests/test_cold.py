"""The cold tier of a layer: scores and choices over all tokens seen, whatever was evicted."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import oracle
import oracle_values
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import DTYPES, ROUTE, add_pages, cut, make, positions, read, slots, step, tokens

from reasonalloc import _core
from reasonalloc.policy.core_cut import CoreCut, slots_of
from reasonalloc.policy.heads import HeadArguments
from reasonalloc.policy.scorers import ScoreArguments
from reasonalloc.store.pages import PagePool

HEADS, GROUP, DIM, WINDOW = 2, 2, 16, 4
SCORES = {
    "rkv": ("rkv", 0.1, 0.5, 7, 0),
    "importance": ("importance", 0.0, 0.0, 5, 0),
    "recency": ("recency", 0.0, 0.0, 1, 0),
    "random": ("random", 0.0, 0.0, 1, 7),
    "vatp": ("vatp", 0.0, 0.0, 5, 0),
    "vase": ("vase", 0.0, 0.0, 5, 7),
    "dkv": ("dkv", 0.0, 0.0, 1, 7),
}
UNIFORM = (0, *ROUTE[1:])


class Tier:
    """A layer with a cold tier, and all tokens that it was ever given."""

    def __init__(self, rows=1, dtype="float32", limit=-1, page_format="same", seed=0, scorer="rkv"):
        self.rows, self.dtype, self.scorer, self.seed = rows, dtype, scorer, seed
        self.pool = _core.Pool(dtype, DIM)
        self.core = _core.Layer(self.pool, rows, HEADS, HEADS * GROUP, WINDOW, scorer)
        if limit is not None:
            self.core.keep_cold(limit, page_format)
        self.given = []

    def step(self, count, cut_in=None):
        self.seed += 1
        q, k, v = tokens((self.rows, HEADS, GROUP, DIM), count, self.dtype, self.seed)
        out = step(self.pool, self.core, q, k, v, cut_in=cut_in)
        self.given.append((q, k, v))
        return out

    def cut(self, total, protect=None, route=UNIFORM):
        totals = np.full(self.rows, total)
        return cut(self.pool, self.core, HEADS, totals, protect, SCORES[self.scorer], route)

    def all(self, row, head):
        """Queries [group, n, D], keys, values [n, D] of everything, float64."""
        q, k, v = (torch.cat(x, 2)[row].double().numpy() for x in zip(*self.given, strict=True))
        return q[head * GROUP : (head + 1) * GROUP], k[head], v[head]

    def cold(self, row, head):
        return np.frombuffer(self.core.cold_read(row, head)[0], np.int32)

    def counts(self, what):
        out = np.zeros((self.rows, HEADS), np.int64)
        getattr(self.core, what)(out)
        return out

    def hot(self):
        return [positions(self.core, r, h).tolist() for r in range(self.rows) for h in range(HEADS)]

    def state(self):
        cold = [self.core.cold_read(r, h) for r in range(self.rows) for h in range(HEADS)]
        held = [read(self.core, r, h, DIM, v).tobytes() for r in range(self.rows) for h in range(HEADS) for v in (0, 1)]
        return self.hot(), cold, held, [self.core.tokens(r) for r in range(self.rows)]


def scores_of_all(tier, row, head):
    """By definition, over all tokens; None where rounding decides."""
    q, k, v = tier.all(row, head)
    name, alpha, threshold, kernel, seed = SCORES[tier.scorer]
    if name in oracle_values.SCORERS:
        state = (q[:, -WINDOW:], k, v, np.arange(len(k)), head, len(k), WINDOW)
        return oracle_values.expected(name, state, kernel, seed, 12, DIM**-0.5)
    if name == "recency":
        return np.arange(len(k) - WINDOW, dtype=np.float64)
    if name == "random":  # what a layer that has evicted nothing says
        whole = _core.Layer(pool := _core.Pool(tier.dtype, DIM), tier.rows, HEADS, HEADS * GROUP, WINDOW, name)
        for part in tier.given:
            step(pool, whole, *part)
        flat = np.zeros(HEADS * (len(k) - WINDOW), np.float32)
        whole.cut_score(np.zeros(tier.rows, np.int64), SCORES[name], np.zeros(tier.rows, np.bool_))
        whole.cut_scores(row, flat)
        return np.split(flat, HEADS)[head].astype(np.float64)
    if name == "importance":
        return oracle.importance(q[:, -WINDOW:], k, kernel)
    if oracle.redundancy_margin(k, threshold) < 1e-5:
        return None
    return oracle.rkv(q[:, -WINDOW:], k, alpha, threshold, kernel)


def assert_is_top(scores, kept, budget):
    """kept: positions before the window. Where two scores are as near as rounding, either may stay."""
    want = oracle.select(scores, budget - WINDOW)
    differ = sorted(set(want) ^ set(kept))
    assert len(kept) == len(want)
    if differ:
        edge = min(scores[i] for i in want)
        assert max(abs(scores[i] - edge) for i in differ) < 2e-6 * max(1, abs(edge)), (differ, edge)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scorer", SCORES)
def test_what_stays_is_the_best_of_all_tokens_ever_seen(scorer, dtype):
    tier, compared, back = Tier(2, dtype, scorer=scorer), 0, 0
    tier.step(30)
    for turn in range(6):
        for left in range(7, -1, -1):
            tier.step(1, left if turn % 2 else None)
        before = [set(x) for x in tier.hot()]
        budgets, _, flags = tier.cut(24)
        assert flags.all() and (budgets == 12).all()
        for pair, hot in enumerate(tier.hot()):
            row, head = divmod(pair, HEADS)
            n = tier.core.tokens(row)
            assert hot[-WINDOW:] == list(range(n - WINDOW, n)) and len(hot) == 12
            assert sorted([*hot, *tier.cold(row, head)]) == list(range(n))
            came = len(set(hot) - before[pair])
            assert tier.counts("cold_recalled")[row, head] == came
            back += came
            scores = scores_of_all(tier, row, head)
            if scores is not None:
                assert_is_top(scores, hot[:-WINDOW], 12)
                compared += 1
            _, k, v = tier.all(row, head)
            assert np.array_equal(read(tier.core, row, head, DIM, False), k[hot].astype(np.float32))
            assert np.array_equal(read(tier.core, row, head, DIM, True), v[hot].astype(np.float32))
    assert compared >= 8 and (back > 0) == (scorer not in ("recency", "random"))


def test_a_layer_that_keeps_no_cold_token_is_as_without_a_tier():
    tier, plain = Tier(2, limit=0), Tier(2, limit=None)
    for each in (tier, plain):
        each.step(30)
    for _ in range(5):
        outs = [each.step(8) for each in (tier, plain)]
        assert torch.equal(*outs)
        results = [each.cut(30, route=ROUTE) for each in (tier, plain)]
        for x, y in zip(*results, strict=True):
            assert np.array_equal(x, y)
        assert tier.hot() == plain.hot() and not tier.counts("cold_slots").any() and tier.pool.cold_bytes == 0
        assert tier.pool.info()[:4] == plain.pool.info()[:4]


@pytest.mark.parametrize("limit", [1, 5, 17])
def test_the_limit_is_exact_and_the_best_stay(limit):
    tier = Tier(limit=limit, scorer="importance")
    tier.step(40)
    for _ in range(4):
        tier.step(8)
        seen = [set(positions(tier.core, 0, h)) | set(tier.cold(0, h)) for h in range(HEADS)]
        budgets, _, _ = tier.cut(28)
        for head in range(HEADS):
            hot, cold = set(tier.hot()[head]), set(tier.cold(0, head))
            assert len(hot) == budgets[0, head] and not hot & cold and hot | cold <= seen[head]
            assert len(cold) == min(limit, len(seen[head]) - len(hot))
            if len(seen[head]) == tier.core.tokens(0):  # nothing was dropped before: all scores are known
                scores = scores_of_all(tier, 0, head)
                assert_is_top(scores, sorted(hot)[:-WINDOW], len(hot))
                union = oracle.select(scores, len(hot) - WINDOW + len(cold))
                assert sorted(hot | cold)[:-WINDOW] == union
    assert tier.counts("cold_slots").max() == limit


def test_protected_tokens_are_the_last_to_be_dropped():
    tier = Tier(limit=6, scorer="recency")
    tier.step(40)
    tier.cut(12, protect=[10])
    for head in range(HEADS):
        assert tier.hot()[head] == [8, 9, 36, 37, 38, 39]  # by recency, of the protected ones first
        assert tier.cold(0, head).tolist() == [2, 3, 4, 5, 6, 7]


def test_recalled_int8_tokens_go_again_without_further_loss():
    for dtype in DTYPES:
        tier = Tier(dtype=dtype, page_format="int8", scorer="importance")
        tier.step(60)
        stored, errors = {}, []
        for _ in range(8):
            tier.step(8)
            tier.cut(24)
            for head in range(HEADS):
                place, records = tier.cold(0, head), np.frombuffer(tier.core.cold_read(0, head)[1], np.uint8)
                for p, record in zip(place.tolist(), records.reshape(len(place), -1), strict=True):
                    assert stored.setdefault((head, p), record.tobytes()) == record.tobytes()
                _, k, v = tier.all(0, head)
                for i, p in enumerate(positions(tier.core, 0, head)):
                    if (head, int(p)) in stored:
                        got = read(tier.core, 0, head, DIM, False)[i], read(tier.core, 0, head, DIM, True)[i]
                        for x, y in zip(got, (k[p], v[p]), strict=True):
                            errors.append(np.abs(x - y).max() / np.abs(y).max())
        assert errors and 0 < max(errors) <= 1 / 127


def test_attention_with_recalled_int8_tokens():
    """Within what errors of 1 / 127 of a block's largest number can make of logits and values."""
    tier = Tier(page_format="int8", scorer="importance")
    tier.step(60)
    for _ in range(4):
        tier.step(8)
        tier.cut(24)
        out = tier.step(1)
        for head in range(HEADS):
            q, k, v = tier.all(0, head)
            hot = positions(tier.core, 0, head)
            want = oracle.attend(q[:, -1:], [k[hot]], [v[hot]], DIM**-0.5)[0]
            logit = (np.abs(q[:, -1]).sum(-1) * np.abs(k[hot]).max() / 127 * DIM**-0.5).max()
            bound = np.expm1(2 * logit) * np.abs(v[hot]).max() + np.abs(v[hot]).max() / 127
            got = out[0, 0, head * GROUP : (head + 1) * GROUP].double().numpy()
            assert np.abs(got - want).max() <= bound < 2
            assert np.abs(got - want).max() < 0.05


def test_rows_with_a_tier_are_alone(dtype="float32"):
    both, alone = Tier(2), [Tier(), Tier()]
    for count in (30, *[8] * 4):
        both.step(count)
        for row, one in enumerate(alone):
            one.given.append(tuple(x[row : row + 1] for x in both.given[-1]))
            step(one.pool, one.core, *one.given[-1])
        if count == 8:
            both.cut(24, route=ROUTE)
            for one in alone:
                one.cut(24, route=ROUTE)
        states = [one.state() for one in alone]
        assert both.state() == tuple([x for s in states for x in s[i]] for i in range(4))
    assert both.counts("cold_slots").min() > 0


def test_rows_fork_are_released_copied_and_cropped():
    tier = Tier(3)
    tier.step(40)
    tier.cut(24)
    state, used = tier.state(), tier.pool.cold_bytes
    twin = tier.core.copy()
    tier.core.fork(0, 1)
    tier.core.reorder(np.array([0, 1, 2, 0], np.int64))
    tier.rows = 4
    each = used // 3
    assert tier.pool.cold_bytes == 3 * each  # row 1's own are its twin's still
    assert tier.core.cold_read(0, 0) == tier.core.cold_read(1, 0) == tier.core.cold_read(3, 0) == state[1][0]
    tier.core.release(2)
    assert tier.counts("cold_slots")[2].sum() == 0
    tier.core.crop(np.array([2, 0, 0, 0], np.int64))
    assert tier.core.cold_read(0, 0) == state[1][0]
    del twin
    assert tier.pool.cold_bytes == each
    tier.core.reset()
    assert tier.pool.cold_bytes == 0


def test_forks_go_on_by_themselves():
    one, many = Tier(), Tier()
    for tier in (one, many):
        tier.step(40)
        tier.cut(24)
    many.core.reorder(np.zeros(3, np.int64))
    many.rows = 3
    new = tokens((1, HEADS, GROUP, DIM), 8, seed=99)
    step(one.pool, one.core, *new)
    step(many.pool, many.core, *(x.repeat(3, 1, 1, 1) for x in new))
    one.cut(24)
    many.cut(24)
    want = one.state()
    for row in range(3):
        assert many.hot()[row * HEADS : (row + 1) * HEADS] == want[0]
        assert many.state()[1][row * HEADS : (row + 1) * HEADS] == want[1]


def recall(tier, totals):
    while missing := tier.core.cut_recall(np.asarray(totals, np.int64)):
        add_pages(tier.pool, missing)


ENDS = {
    "abandon": lambda tier: tier.core.cut_abandon(),
    "copy": lambda tier: tier.core.copy(),
    "reserve": lambda tier: tier.core.reserve(0),
    "release": lambda tier: tier.core.release(1),
    "reorder": lambda tier: tier.core.reorder(np.arange(2)),
    "crop": lambda tier: tier.core.crop(0),
    "cut": lambda tier: (
        tier.core.cut_score(np.full(2, 24), SCORES["rkv"], np.zeros(2, bool)),
        tier.core.cut_abandon(),
    ),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("page_format", ["same", "int8"])
def test_a_recall_that_is_given_up_leaves_all_as_it_was(end, page_format):
    tier, twin = Tier(2, page_format=page_format), Tier(2, page_format=page_format)
    for each in (tier, twin):
        each.step(40)
        each.cut(24)
        each.step(5)
        each.core.release(1)
    before, used = tier.state(), tier.pool.info()[1]
    recall(tier, [24, -1])
    n = tier.core.tokens(0)
    assert tier.hot()[0] == list(range(n)) and tier.pool.info()[1] > used
    ENDS[end](tier)
    assert tier.state() == before and tier.pool.info()[1] == used
    for each in (tier, twin):
        each.step(8)
        each.cut(24)
    assert tier.state() == twin.state()


def test_a_row_with_room_gets_everything_back():
    tier = Tier()
    tier.step(40)
    tier.cut(24)
    _, _, flags = tier.cut(100)
    assert not flags.any() and tier.hot() == [list(range(40))] * 2
    assert tier.counts("cold_recalled").tolist() == [[28, 28]] and tier.pool.cold_bytes == 0


def test_counts_of_rows_that_are_cut_and_of_one_that_keeps_all():
    pool = PagePool("float32", DIM)
    core = _core.Layer(pool.core, 3, HEADS, HEADS * GROUP, WINDOW, "recency")
    core.keep_cold(-1, "same")
    layer = SimpleNamespace(core=core, pool=pool, heads=HEADS, index=0, order=0)
    pool.step(core, *tokens((3, HEADS, GROUP, DIM), 40), None, 1.0)

    def cut(*totals):
        cut = CoreCut(layer, WINDOW, np.array(totals), np.zeros(3, np.int64), True)
        if cut.rows:
            cut.run(ScoreArguments("recency"), HeadArguments("uniform"))
        return cut

    assert cut(24, -1, -1).evicted.tolist() == [[28, 28], [0, 0], [0, 0]]
    mixed = cut(100, 24, -1)
    assert mixed.rows == [1]
    assert (mixed.evicted.tolist(), mixed.recalled.tolist()) == ([[0, 0], [28, 28], [0, 0]], [[28, 28], [0, 0], [0, 0]])
    assert slots_of(layer).tolist() == [[40, 40], [12, 12], [40, 40]]
    alone = cut(-1, 100, 200)
    assert not alone.rows and alone.recalled.tolist() == [[0, 0], [28, 28], [0, 0]] and pool.cold_bytes == 0


def test_a_cut_without_its_recall_is_refused():
    tier = Tier()
    tier.step(40)
    tier.cut(24)
    tier.step(4)
    before = tier.state()
    with pytest.raises(ValueError):
        tier.core.cut_score(np.full(1, 24), SCORES["rkv"], np.zeros(1, bool))
    assert tier.state() == before


def test_restored_tokens_go_on():
    for page_format in ("same", "int8"):
        tier, other = Tier(page_format=page_format), Tier(page_format=page_format)
        tier.step(40)
        tier.cut(24)
        add_pages(other.pool, 20)
        for h in range(HEADS):
            kept = (positions(tier.core, 0, h), *(read(tier.core, 0, h, DIM, v) for v in (False, True)))
            other.core.restore(0, h, *kept)
        n, queries = tier.core.queries(0)
        other.core.restore_row(0, 40, n, np.frombuffer(queries, np.float32), tier.core.scale, 0.0)
        for h in range(HEADS):
            cold, records = (np.frombuffer(x, t) for x, t in zip(tier.core.cold_read(0, h), "ib", strict=True))
            bad = cold.copy()
            bad[0] = positions(tier.core, 0, h)[0]
            for wrong in (
                (np.sort(bad), records),
                (cold[::-1].copy(), records),
                (cold + 30, records),
                (cold, records[1:]),
            ):
                with pytest.raises(ValueError):
                    other.core.cold_restore(0, h, *wrong)
            other.core.cold_restore(0, h, cold, records)
            with pytest.raises(ValueError):
                other.core.cold_restore(0, h, cold, records)
        assert tier.state() == other.state()
        new = tokens((1, HEADS, GROUP, DIM), 8, seed=50)
        for each in (tier, other):
            step(each.pool, each.core, *new)
            each.cut(24)
        assert tier.state() == other.state()


def test_a_crop_amid_a_cut_finds_what_was_evicted():
    tier = Tier(rows=1)
    tier.step(60)
    tier.cut(24)
    before = tier.state()
    with pytest.raises(ValueError, match="evicted"):
        tier.core.crop(30)
    recall(tier, [24])
    with pytest.raises(ValueError, match="evicted"):
        tier.core.crop(30)
    assert tier.state() == before
    tier.core.crop(2)
    assert tier.core.tokens(0) == 58


GARBAGE = """
import gc, numpy as np, torch
from reasonalloc import _core
pool = _core.Pool("float32", 64)
pool.add_slab(torch.empty(4096 * pool.page_bytes, dtype=torch.uint8))  # unmapped once it is freed
layer = _core.Layer(pool, 1, 2, 2, 4)
layer.keep_cold(-1, "same")
x = lambda: torch.randn(1, 2, 300, 64)
layer.step(x(), x(), x(), None, 1.0)
results = np.zeros((1, 2), np.int64), np.zeros((1, 2)), np.zeros(1, bool)
layer.cut(np.array([200]), np.zeros(1, np.int64), ("recency", 0.1, 0.5, 1, 0), (0, 0.5, 0.25, 2.0, 0.0, 0.0), *results)
layer.cut_recall(np.array([200]))
class Circle: pass
circle = Circle()
circle.own, circle.pool, circle.layer = circle, pool, layer
del circle, pool, layer
gc.collect()
"""


def test_a_layer_amid_a_cut_may_be_garbage_with_its_pool():
    assert subprocess.run([sys.executable, "-c", GARBAGE], check=False).returncode == 0


def test_statistics_come_along():
    pool = _core.Pool("float32", DIM)
    make_layer = lambda: _core.Layer(pool, 1, HEADS, HEADS * GROUP, WINDOW, "h2o")  # noqa: E731
    layer = make_layer()
    layer.keep_cold(-1, "same")
    step(pool, layer, *tokens((1, HEADS, GROUP, DIM), 40, seed=1))
    fields, raw = layer.columns(0, 0)
    before = np.frombuffer(raw, np.float32).copy()
    assert fields == 1 and before.min() > 0
    cut(pool, layer, HEADS, [24], score=("h2o", 0.0, 0.0, 1, 0), route=UNIFORM)
    while missing := layer.cut_recall(np.array([24])):
        add_pages(pool, missing)
    assert np.array_equal(np.frombuffer(layer.columns(0, 0)[1], np.float32), before)
    layer.cut_abandon()
    kept = positions(layer, 0, 0)
    assert np.array_equal(np.frombuffer(layer.columns(0, 0)[1], np.float32), before[kept])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_token_is_lost_or_doubled(data):
    """hot + cold + dropped = all, in any order of calls; the limit and the totals hold."""
    rows, limit = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([-1, 0, 3, 20]))
    scorer = data.draw(st.sampled_from(list(SCORES)))
    tier = Tier(rows, data.draw(st.sampled_from(list(DTYPES))), limit, data.draw(st.sampled_from(["same", "int8"])),
                data.draw(st.integers(0, 99)), scorer)  # fmt: skip
    gone = {(r, h): set() for r in range(rows) for h in range(HEADS)}
    for _ in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["step", "step", "cut", "cut", "fork", "release", "abandon", "crop", "trim"]))
        if kind == "step":
            q, k, v = tokens((rows, HEADS, GROUP, DIM), data.draw(st.integers(1, 20)), tier.dtype, tier.seed)
            tier.seed += 1
            step(tier.pool, tier.core, q, k, v)
        elif kind == "cut":
            totals = np.array([data.draw(st.sampled_from([-1, 8, 13, 24, 70])) for _ in range(rows)], np.int64)
            before = {(r, h): set(positions(tier.core, r, h)) | set(tier.cold(r, h)) for r, h in gone}
            cut(tier.pool, tier.core, HEADS, totals, np.full(rows, data.draw(st.sampled_from([0, 5]))), SCORES[scorer],
                data.draw(st.sampled_from([UNIFORM, ROUTE])))  # fmt: skip
            for (r, h), all_ in before.items():
                gone[r, h] |= all_ - set(positions(tier.core, r, h)) - set(tier.cold(r, h))
            held = slots(tier.core, HEADS).sum(1)
            assert all(t < 0 or n <= t for t, n in zip(totals, held, strict=True))
        elif kind == "fork":
            a, b = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, rows - 1))
            tier.core.fork(a, b)
            for h in range(HEADS):
                gone[b, h] = set(gone[a, h])
        elif kind == "release":
            row = data.draw(st.integers(0, rows - 1))
            tier.core.release(row)
            for h in range(HEADS):
                gone[row, h] = set()
        elif kind == "abandon":
            recall(tier, np.full(rows, 8))
            tier.core.cut_abandon()
        elif kind == "crop":
            if data.draw(st.booleans()):
                recall(tier, np.full(rows, 8))
            with suppress(ValueError):  # they were evicted, or never came
                tier.core.crop(data.draw(st.integers(0, 12)))
            tier.core.cut_abandon()
        else:
            tier.pool.trim(0)
        for (r, h), lost in gone.items():
            hot, cold = positions(tier.core, r, h).tolist(), tier.cold(r, h).tolist()
            assert hot == sorted(hot) and cold == sorted(cold)
            assert sorted([*hot, *cold, *lost]) == list(range(tier.core.tokens(r)))
            assert limit < 0 or len(cold) <= limit
            assert limit or not cold
    del tier.core
    assert tier.pool.cold_bytes == 0 and tier.pool.info()[1] == 0


def test_bad_arguments():
    _, layer = make()
    for arguments, match in [((-1, "int4"), "'same' or 'int8', got 'int4'"), ((-1, 3), "got 3")]:
        with pytest.raises(ValueError, match=match):
            layer.keep_cold(*arguments)
    layer.keep_cold(3, "int8")
    with pytest.raises(ValueError, match="once, to an empty layer"):
        layer.keep_cold(3, "int8")
    with pytest.raises(ValueError):
        layer.cut_recall(np.zeros(5, np.int64))
