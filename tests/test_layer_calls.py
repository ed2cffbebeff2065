"""Any sequence of calls of _core.Layer against plain lists."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from layers import (
    DTYPES,
    PAGE,
    TOLERANCE,
    assert_same,
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

pytestmark = pytest.mark.core


class Head:
    """Slots as lists; pages as numbers, so that sharing can be counted."""

    def __init__(self):
        self.positions, self.keys, self.values, self.pages = [], [], [], []

    def copy(self):
        other = Head()
        for name in ("positions", "keys", "values", "pages"):
            setattr(other, name, list(getattr(self, name)))
        return other

    def keep(self, stay):
        for name in ("positions", "keys", "values"):
            setattr(self, name, [getattr(self, name)[i] for i in stay])


class Row:
    def __init__(self, heads):
        self.heads, self.seen, self.queries = [Head() for _ in range(heads)], 0, []

    def copy(self):
        other = Row(0)
        other.heads, other.seen, other.queries = [h.copy() for h in self.heads], self.seen, list(self.queries)
        return other


class LayerMachine(RuleBasedStateMachine):
    """Random appends, evictions, reorders, crops, trims and resets; everything readable is compared after each."""

    @initialize(
        dtype=st.sampled_from(list(DTYPES)),
        rows=st.integers(1, 3),
        heads=st.integers(1, 3),
        group=st.sampled_from([1, 3]),
        dim=st.sampled_from([1, 5, 16, 20]),
        window=st.sampled_from([1, 3, 8]),
    )
    def start(self, dtype, rows, heads, group, dim, window):
        self.dtype, self.heads, self.group, self.dim, self.window = dtype, heads, group, dim, window
        self.pool, self.layer = make(dtype, rows, heads, group, dim, window)
        self.rows = [Row(heads) for _ in range(rows)]
        self.seed = self.next_page = 0
        self.peak = 0

    def page(self):
        self.next_page += 1
        return self.next_page

    def owners(self, page):
        return sum(h.pages.count(page) for r in self.rows for h in r.heads)

    @rule(count=st.integers(1, 40), padding=st.sampled_from(["none", "left", "right", "random"]))
    def append(self, count, padding):
        self.seed += 1
        random = np.random.default_rng(self.seed)
        real = np.ones((len(self.rows), count), bool)
        for b in range(len(self.rows)):
            gone = int(random.integers(0, count + 1))
            if padding == "left":
                real[b, :gone] = False
            elif padding == "right":
                real[b, count - gone :] = False
            elif padding == "random":
                real[b] = random.random(count) < 0.7
        q, k, v = tokens((len(self.rows), self.heads, self.group, self.dim), count, self.dtype, self.seed)
        flags = None if padding == "none" else torch.from_numpy(real)
        out = step(self.pool, self.layer, q, k, v, flags, scale=0.3)
        for b, row in enumerate(self.rows):
            fresh = np.flatnonzero(real[b])
            for h, head in enumerate(row.heads):
                if len(fresh) and len(head.positions) % PAGE and self.owners(head.pages[-1]) > 1:
                    head.pages[-1] = self.page()
                head.positions += range(row.seen, row.seen + len(fresh))
                head.keys += [k[b, h, t].float().numpy() for t in fresh]
                head.values += [v[b, h, t].float().numpy() for t in fresh]
                while len(head.pages) < pages_for(len(head.positions)):
                    head.pages.append(self.page())
            row.queries = [*row.queries, *(q[b, :, t].float().numpy() for t in fresh)][-self.window :]
            row.seen += len(fresh)
            assert (out[b, ~real[b]] == 0).all()
            if len(fresh):
                expected = oracle.attend(
                    q[b, :, fresh].double(),
                    [np.array(h.keys) for h in row.heads],
                    [np.array(h.values) for h in row.heads],
                    0.3,
                )
                tolerance = TOLERANCE[self.dtype]
                np.testing.assert_allclose(out[b, fresh].double(), expected, rtol=tolerance, atol=tolerance)

    @rule(data=st.data(), protect=st.integers(0, 20), ties=st.booleans())
    def evict(self, data, protect, ties):
        b = data.draw(st.integers(0, len(self.rows) - 1))
        row = self.rows[b]
        counts = [len(h.positions) for h in row.heads]
        budgets = [data.draw(st.integers(min(self.window, n), n + 2)) for n in counts]
        random = np.random.default_rng(self.seed + 7)
        scores = [
            random.integers(0, 3, max(0, n - self.window)) if ties else random.random(max(0, n - self.window))
            for n in counts
        ]
        fresh = [0] * self.heads
        stays = []
        for h, head in enumerate(row.heads):  # what each head needs is settled before any of them moves
            n = counts[h]
            window = min(self.window, n)
            if budgets[h] >= n:
                stays.append(None)
                continue
            guarded = sum(p < protect for p in head.positions[: n - window])
            stay = [*oracle.select(scores[h], budgets[h] - window, guarded), *range(n - window, n)]
            prefix = next((i for i, s in enumerate(stay) if s != i), len(stay))
            shared = any(self.owners(p) > 1 for p in head.pages[prefix // PAGE : pages_for(len(stay))])
            fresh[h] = pages_for(len(stay)) - prefix // PAGE if shared else 0
            stays.append((stay, prefix))
        evict(self.pool, self.layer, b, budgets, scores, protect)
        for h, head in enumerate(row.heads):
            if stays[h] is not None:
                stay, prefix = stays[h]
                head.keep(stay)
                if fresh[h]:
                    head.pages = head.pages[: prefix // PAGE] + [self.page() for _ in range(fresh[h])]
                else:
                    head.pages = head.pages[: pages_for(len(stay))]

    @rule(data=st.data())
    def reorder(self, data):
        source = data.draw(st.lists(st.integers(0, len(self.rows) - 1), min_size=1, max_size=4))
        self.layer.reorder(np.array(source, np.int64))
        self.rows = [self.rows[s].copy() for s in source]

    @rule(count=st.integers(0, 20))
    def crop(self, count):
        possible = all(
            row.seen >= count
            and all(
                h.positions[len(h.positions) - count :] == list(range(row.seen - count, row.seen)) for h in row.heads
            )
            for row in self.rows
        )
        if not possible:
            before = snapshot(self.layer)
            with pytest.raises(ValueError, match="crop"):
                self.layer.crop(count)
            assert_same(snapshot(self.layer), before)
            return
        self.layer.crop(count)
        for row in self.rows:
            row.seen -= count
            row.queries = row.queries[: max(0, len(row.queries) - count)]
            for head in row.heads:
                head.keep(range(len(head.positions) - count))
                head.pages = head.pages[: pages_for(len(head.positions))]

    @rule(keep=st.integers(0, 5))
    def trim(self, keep):
        before = self.pool.info()
        self.pool.trim(keep)
        _pages, used, free, _, _ = self.pool.info()
        assert used == before[1]
        assert free >= min(keep, before[2])

    @precondition(lambda self: any(r.seen for r in self.rows))
    @rule()
    def reset(self):
        self.layer.reset()
        self.rows = [Row(self.heads) for _ in self.rows]
        assert self.pool.info()[1] == 0  # all pages are home

    @invariant()
    def everything_is_where_it_belongs(self):
        if not hasattr(self, "layer"):
            return
        assert self.layer.rows == len(self.rows)
        expected = np.array([[len(h.positions) for h in row.heads] for row in self.rows])
        np.testing.assert_array_equal(slots(self.layer, self.heads), expected)
        for b, row in enumerate(self.rows):
            assert self.layer.tokens(b) == row.seen
            count, raw = self.layer.queries(b)
            assert count == len(row.queries)
            given = np.frombuffer(raw, np.float32).reshape(self.heads * self.group, count, self.dim)
            for i, query in enumerate(row.queries):
                np.testing.assert_array_equal(given[:, i], query)
            for h, head in enumerate(row.heads):
                assert positions(self.layer, b, h).tolist() == head.positions
                if head.positions:
                    np.testing.assert_array_equal(read(self.layer, b, h, self.dim, False), np.array(head.keys))
                    np.testing.assert_array_equal(read(self.layer, b, h, self.dim, True), np.array(head.values))
        pages, used, free, peak, _ = self.pool.info()
        distinct = {p for row in self.rows for h in row.heads for p in h.pages}
        assert used == len(distinct)  # neither lost nor shared by mistake
        assert pages == used + free
        self.peak = max(self.peak, used)
        assert peak >= self.peak


TestLayerMachine = LayerMachine.TestCase
TestLayerMachine.settings = settings(
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
