"""_core.Pool and _core.Layer against plain lists and float64 attention."""

import subprocess
import sys
import textwrap
import threading

import numpy as np
import oracle
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reasonalloc import _core

pytestmark = pytest.mark.core

PAGE = _core.PAGE_TOKENS
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {"float32": 2e-5, "bfloat16": 8e-3, "float16": 1e-3}  # of outputs of about 1: half a step of the dtype
RKV = (0, 0.1, 0.5, 7, 0)
ROUTE = (1, 0.5, 0.25, 2.0, 0.25, 0.2)


# ---- Helpers ---------------------------------------------------------------------------------------------------------


def add_pages(pool, pages):
    pool.add_slab(torch.full((pages * pool.page_bytes,), 255, dtype=torch.uint8))  # NaN: nothing may rely on zeros


def make(dtype="float32", rows=2, heads=2, group=2, dim=16, window=4):
    pool = _core.Pool(dtype, dim)
    return pool, _core.Layer(pool, rows, heads, heads * group, window)


def tokens(layer_shape, count, dtype="float32", seed=0, scale=1.0):
    """Random queries, keys, values for (rows, heads, group, dim)."""
    rows, heads, group, dim = layer_shape
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (torch.randn(rows, h, count, dim, generator=generator) * scale).to(DTYPES[dtype])
        for h in (heads * group, heads, heads)
    )


def step(pool, layer, q, k, v, real=None, scale=0.25, attend=True):
    """layer.step with as many pages as it asks for; returns the output."""
    out = torch.full((q.shape[0], q.shape[2], q.shape[1], q.shape[3]), float("nan"), dtype=q.dtype) if attend else None
    before = snapshot(layer)
    while missing := layer.step(q, k, v, real, scale, out):
        assert_same(snapshot(layer), before)
        assert missing > 0
        add_pages(pool, missing)
    return out


def slots(layer, heads):
    out = np.zeros((layer.rows, heads), np.int64)
    layer.slots(out)
    return out


def positions(layer, row, head):
    return np.frombuffer(layer.positions(row, head), np.int32)


def read(layer, row, head, dim, values):
    out = np.full((len(positions(layer, row, head)), dim), np.nan, np.float32)
    layer.read(row, head, values, out)
    return out


def heads_of(layer):
    head = 0
    while True:
        try:
            layer.positions(0, head)
        except IndexError:
            return head
        head += 1


def snapshot(layer):
    """Everything that a layer shows."""
    heads = heads_of(layer)
    held = [layer.positions(r, h) for r in range(layer.rows) for h in range(heads)]
    return held, [layer.seen(r) for r in range(layer.rows)], [layer.queries(r) for r in range(layer.rows)]


def assert_same(given, expected):
    assert given == expected


def evict(pool, layer, row, budgets, scores, protect=0):
    budgets = np.asarray(budgets, np.int64)
    lost = np.zeros(len(budgets))
    flat = np.concatenate([np.asarray(s, np.float32) for s in scores]) if len(scores) else np.zeros(0, np.float32)
    while missing := layer.evict(row, budgets, flat, protect, lost):
        add_pages(pool, missing)
    return lost


# ---- Attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 40, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_softmax_attention(isa, dtype, dim):
    shape = rows, heads, group, dim = (2, 2, (1, 3, 4, 8)[dim % 4], dim)
    pool, layer = make(dtype, rows, heads, group, dim)
    held = [[[np.zeros((0, dim))] * 2 for _ in range(heads)] for _ in range(rows)]
    for seed, count in enumerate((1, 40, 2, 1, 17, 1, 7)):
        q, k, v = tokens(shape, count, dtype, seed)
        out = step(pool, layer, q, k, v, scale=dim**-0.5)
        assert not out.isnan().any()
        for b in range(rows):
            for h in range(heads):
                held[b][h] = [
                    np.concatenate([old, new[b, h].double().numpy()])
                    for old, new in zip(held[b][h], (k, v), strict=True)
                ]
            expected = oracle.attend(q[b].double(), [x[0] for x in held[b]], [x[1] for x in held[b]], dim**-0.5)
            np.testing.assert_allclose(out[b].double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        if seed in (1, 4):  # ragged from here on
            random = np.random.default_rng(seed)
            now = slots(layer, heads)
            for b in range(rows):
                budgets = [int(random.integers(4, n + 3)) for n in now[b]]
                scores = [random.random(n - 4) for n in now[b]]
                evict(pool, layer, b, budgets, scores)
                for h in range(heads):
                    older = oracle.select(scores[h], max(0, min(budgets[h], now[b][h]) - 4))
                    stay = [*older, *range(now[b][h] - 4, now[b][h])]
                    held[b][h] = [x[stay] for x in held[b][h]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_is_never_seen(isa, dtype):
    shape = rows, heads, group, dim = (4, 2, 3, 24)
    pool, layer = make(dtype, rows, heads, group, dim)
    real = torch.ones(rows, 21, dtype=torch.bool)
    real[0, :5] = False  # left
    real[1, 17:] = False  # right
    real[2] = False  # a row without any token
    real[3, ::3] = False  # anywhere
    q, k, v = tokens(shape, 21, dtype)
    for x in (q, k, v):
        x.masked_fill_(~real[:, None, :, None], float("nan"))
    out = step(pool, layer, q, k, v, real)
    for b in range(rows):
        keep = real[b]
        assert (out[b, ~keep] == 0).all()
        assert layer.seen(b) == keep.sum()
        if keep.any():
            q_b, k_b, v_b = (x[b, :, keep].double() for x in (q, k, v))
            expected = oracle.attend(q_b, list(k_b), list(v_b), 0.25)
            np.testing.assert_allclose(out[b, keep].double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        for h in range(heads):
            assert positions(layer, b, h).tolist() == list(range(int(keep.sum())))
            np.testing.assert_array_equal(read(layer, b, h, dim, False), k[b, h, keep].float())
            np.testing.assert_array_equal(read(layer, b, h, dim, True), v[b, h, keep].float())
    # decode steps go on behind it, the empty row's first token included
    q, k, v = tokens(shape, 1, dtype, 1)
    out = step(pool, layer, q, k, v)
    np.testing.assert_allclose(out[2, 0].double(), v[2, :, 0].double().repeat_interleave(group, 0), rtol=1e-6)


def test_large_logits_stay_finite(isa):
    pool, layer = make(dim=8)
    q, k, v = tokens((2, 2, 2, 8), 50, scale=100.0)
    out = step(pool, layer, q, k, v, scale=10.0)
    assert out.isfinite().all()
    for b in range(2):
        np.testing.assert_allclose(
            out[b].double(), oracle.attend(q[b].double(), k[b].double(), v[b].double(), 10.0), rtol=1e-4, atol=1e-3
        )


def test_logits_that_overflow_to_minus_infinity(isa):
    """A page of them before the first finite one weighs nothing, and is no NaN."""
    pool, layer = make(rows=1, heads=1, group=1, dim=1)
    keys = torch.full((1, 1, PAGE, 1), -1e20)
    step(pool, layer, torch.ones(1, 1, PAGE, 1), keys, torch.ones_like(keys), attend=False)
    out = step(
        pool, layer, torch.full((1, 1, 1, 1), 1e20), torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3.0), scale=1.0
    )
    assert out.item() == 3


def test_strided_and_expanded_tensors():
    shape = rows, _heads, _group, dim = (2, 2, 2, 16)
    q, k, v = tokens(shape, 9)
    plain_pool, plain = make()
    expected = step(plain_pool, plain, q, k, v)
    pool, layer = make()
    # [B, T, H, D] in memory, as models have it
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not turned[0].is_contiguous()
    assert torch.equal(step(pool, layer, *turned), expected)
    one = [x[:1].expand(rows, -1, -1, -1) for x in (q, k, v)]
    pool, layer = make()
    out = step(pool, layer, *one)
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], expected[0])
    part = [torch.cat([x, x], -1)[..., :dim] for x in (q, k, v)]  # a slice with gaps between tokens
    pool, layer = make()
    assert torch.equal(step(pool, layer, *part), expected)


def test_one_instruction_set_is_like_another():
    outputs = []
    before = _core.isa()
    try:
        for name in _core.isas():
            _core.set_isa(name)
            pool, layer = make(dim=40)
            q, k, v = tokens((2, 2, 2, 40), 33)
            outputs.append(step(pool, layer, q, k, v))
    finally:
        _core.set_isa(before)
    for out in outputs[1:]:
        torch.testing.assert_close(out, outputs[0], rtol=1e-5, atol=1e-6)


def test_unknown_instruction_set():
    before = _core.isa()
    with pytest.raises(ValueError, match="'sparc' is not available"):
        _core.set_isa("sparc")
    assert _core.isa() == before


@pytest.mark.parametrize("threads", [2, 5])
def test_thread_count_changes_nothing(threads):
    def run():
        pool, layer = make(rows=3, heads=3, dim=64)
        q, k, v = tokens((3, 3, 2, 64), 150)
        out = [step(pool, layer, q, k, v)]
        cut(pool, layer, 3, [200, 90, 30])
        q, k, v = tokens((3, 3, 2, 64), 3, seed=1)
        return [*out, step(pool, layer, q, k, v)], snapshot(layer)

    expected, held = run()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        given, now = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
    assert now == held


# ---- Any sequence of calls against plain lists -----------------------------------------------------------------------


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


def pages_for(n):
    return -(-n // PAGE)


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
            assert self.layer.seen(b) == row.seen
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


# ---- Pool ------------------------------------------------------------------------------------------------------------


def test_pages_are_asked_for_exactly():
    pool, layer = make(rows=2, heads=3, dim=8)
    q, k, v = tokens((2, 3, 2, 8), 33)
    before = snapshot(layer)
    assert layer.step(q, k, v, None, 1.0, None) == 2 * 3 * 3
    assert_same(snapshot(layer), before)
    add_pages(pool, 17)
    assert layer.step(q, k, v, None, 1.0, None) == 1
    add_pages(pool, 1)
    assert layer.step(q, k, v, None, 1.0, None) == 0
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
        (lambda n: torch.zeros(n + 1, dtype=torch.uint8)[1:], ValueError, "add_slab"),  # not aligned
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


# ---- Cutting ---------------------------------------------------------------------------------------------------------


def cut(pool, layer, heads, totals, protect=None, score=RKV, route=ROUTE):
    totals = np.asarray(totals, np.int64)
    protect = np.zeros(len(totals), np.int64) if protect is None else np.asarray(protect, np.int64)
    budgets, lost = np.full((len(totals), heads), -7, np.int64), np.full((len(totals), heads), np.nan)
    flags = np.zeros(len(totals), np.bool_)
    while missing := layer.compress(totals, protect, score, route, budgets, lost, flags):
        add_pages(pool, missing)
    return budgets, lost, flags


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scorer", [0, 1, 2, 3])
@pytest.mark.parametrize("allocator", [0, 1, 2])
def test_compress_is_score_route_and_evict(isa, dtype, scorer, allocator):
    shape = rows, heads, _group, _dim = (3, 3, 2, 24)
    score, route = (scorer, 0.3, 0.5, 5, 42), (allocator, 0.5, 0.25, 2.0, 0.25, 0.2)
    pairs = [make(dtype, *shape) for _ in range(2)]
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
    layer.score(0, score, flat)
    expected = np.empty(heads, np.int64)
    _core.route(flat, np.full(heads, 86, np.int64), 4, 120, route, expected)
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
        layer.score(1, RKV, flat)
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
        layer.score(row, (2, 0.1, 0.5, 7, 0), flat)
        recency.append(flat.copy())
        layer.score(row, (3, 0.1, 0.5, 7, 99), flat)
        random.append(flat.copy())
    older = [positions(layer, 1, h)[:-4] for h in (0, 1)]
    assert recency[1].tolist() == np.concatenate(older).tolist()
    assert (np.unique(np.concatenate(random)).size) > 30
    # the same position of the same head has the same number in every row
    table = dict(zip(range(15), random[0][:15], strict=True))
    assert all(table[p] == x for p, x in zip(older[0], random[1], strict=False) if p in table)
    flat = np.empty_like(random[1])
    layer.score(1, (3, 0.1, 0.5, 7, 100), flat)
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
    assert layer.evict(1, np.array([20, 20], np.int64), scores, 0, lost) == 4
    assert_same(snapshot(layer), before)
    add_pages(pool, 4)
    assert layer.evict(1, np.array([20, 20], np.int64), scores, 0, lost) == 0
    assert pool.info()[1:3] == (12, 0)
    assert positions(layer, 1, 0).tolist() == list(range(44, 64))
    for row in (0, 2):
        assert positions(layer, row, 1).tolist() == list(range(64))
    keys = [read(layer, r, 0, 16, False) for r in range(3)]
    assert np.array_equal(keys[0], keys[2])
    assert np.array_equal(keys[0][44:], keys[1])


def test_compress_goes_on_where_pages_ran_out():
    pool, layer = make(rows=1, heads=2)
    step(pool, layer, *tokens((1, 2, 2, 16), 64), attend=False)
    layer.reorder(np.zeros(3, np.int64))
    arguments = (np.full(3, 40, np.int64), np.zeros(3, np.int64), RKV, ROUTE)
    budgets, lost, flags = np.zeros((3, 2), np.int64), np.zeros((3, 2)), np.zeros(3, np.bool_)
    calls = 0
    while missing := layer.compress(*arguments, budgets, lost, flags):
        add_pages(pool, missing)
        calls += 1
    assert calls
    assert flags.all()
    assert (budgets.sum(1) == 40).all()
    assert np.array_equal(slots(layer, 2), budgets)
    assert len({layer.positions(r, 0) for r in range(3)}) == 1
    assert pool.info()[1] == sum(pages_for(n) for n in budgets.reshape(-1))


# ---- Numbers that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_and_values_must_be_finite(isa, dtype, bad):
    for dim in (1, 5, 16, 40):
        shape = (2, 2, 1, dim)
        pool, layer = make(dtype, *shape)
        step(pool, layer, *tokens(shape, 10, dtype))
        before, info = snapshot(layer), pool.info()
        for which in (1, 2):
            for at in ((0, 0, 0, 0), (1, 1, 2, dim - 1)):
                arguments = tokens(shape, 3, dtype, 1)
                arguments[which][at] = bad
                add_pages(pool, 8 - pool.info()[2]) if pool.info()[2] < 8 else None
                info = pool.info()
                with pytest.raises(ValueError, match="NaN or infinity"):
                    layer.step(*arguments, None, 1.0, None)
                assert_same(snapshot(layer), before)
                assert pool.info() == info


def test_largest_numbers_are_finite():
    for dtype, torch_dtype in DTYPES.items():
        pool, layer = make(dtype)
        q, k, v = tokens((2, 2, 2, 16), 3, dtype)
        k[0, 0, 0, 0] = torch.finfo(torch_dtype).max
        v[0, 0, 0, 0] = torch.finfo(torch_dtype).min
        step(pool, layer, q, k, v, attend=False)
        assert read(layer, 0, 0, 16, False)[0, 0] == torch.finfo(torch_dtype).max


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_queries_that_are_not_finite_give_no_cut(bad):
    pool, layer = make()
    q, k, v = tokens((2, 2, 2, 16), 40)
    q[1, 2, -1, 3] = bad
    step(pool, layer, q, k, v, attend=False)
    before = snapshot(layer)
    with pytest.raises(ValueError, match="NaN or infinity"):
        cut(pool, layer, 2, [-1, 30])
    assert_same(snapshot(layer), before)
    cut(pool, layer, 2, [30, -1])  # the other row is fine
    assert slots(layer, 2)[0].sum() == 30


# ---- Arguments that do not fit ---------------------------------------------------------------------------------------


def altered(index, change):
    def apply():
        arguments = [*tokens((2, 2, 2, 16), 3), None, 0.25, torch.zeros(2, 3, 4, 16)]
        arguments[index] = change(arguments[index])
        return arguments

    return apply


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (altered(0, lambda q: q[:, :3]), ValueError, r"queries must have shape \[2, 4, 3, 16\], got \[2, 3, 3, 16\]"),
        (altered(0, lambda q: q[..., :8]), ValueError, r"queries must have shape"),
        (altered(0, lambda q: q[:, :, :0]), ValueError, "queries must have shape"),
        (altered(0, lambda q: q[0]), ValueError, "queries must have 4 dimensions, got 3"),
        (altered(0, lambda q: q.double()), TypeError, "queries: dtype not supported"),
        (altered(0, lambda q: q.to(torch.int32)), TypeError, "dtype not supported"),
        (altered(0, lambda q: q.to(torch.complex64)), TypeError, "dtype not supported"),
        (altered(0, lambda q: q.half()), TypeError, "another dtype"),
        (altered(0, lambda q: q.numpy()), TypeError, "torch tensor"),
        (altered(0, lambda q: q.tolist()), TypeError, "torch tensor"),
        (altered(0, lambda q: None), TypeError, "torch tensor"),
        (altered(0, lambda q: q.transpose(2, 3).contiguous().transpose(2, 3)), ValueError, "contiguous in its last"),
        (altered(1, lambda k: k[:1]), ValueError, "keys must have shape"),
        (altered(1, lambda k: k[:, :, :2]), ValueError, "keys must have shape"),
        (altered(1, lambda k: k[..., ::2]), ValueError, "keys must have shape"),
        (altered(1, lambda k: torch.cat([k, k], -1)[..., ::2]), ValueError, "contiguous in its last"),
        (altered(2, lambda v: v[:, :1]), ValueError, "values must have shape"),
        (altered(2, lambda v: v.bfloat16()), TypeError, "another dtype"),
        (altered(3, lambda r: torch.ones(2, 3)), ValueError, "bool tensor"),
        (altered(3, lambda r: torch.ones(2, 2, dtype=torch.bool)), ValueError, "bool tensor"),
        (altered(3, lambda r: torch.ones(3, 2, dtype=torch.bool).T), ValueError, "contiguous bool tensor"),
        (altered(3, lambda r: [True]), TypeError, "torch tensor"),
        (altered(4, lambda s: "1"), TypeError, None),
        (altered(5, lambda o: o[:, :2]), ValueError, "out must be contiguous"),
        (altered(5, lambda o: o.half()), ValueError, "out must be contiguous"),
        (altered(5, lambda o: o.transpose(1, 2)), ValueError, "out must be contiguous"),
        (altered(5, lambda o: o.numpy()), TypeError, "torch tensor"),
        (altered(4, lambda s: float("nan")), ValueError, None),
        (altered(4, lambda s: float("inf")), ValueError, None),
    ],
)
def test_step_refuses_what_does_not_fit(arguments, error, message):
    pool, layer = make()
    add_pages(pool, 8)
    before = snapshot(layer)
    with pytest.raises(error, match=message):
        layer.step(*arguments())
    assert_same(snapshot(layer), before)
    assert pool.info()[1] == 0
    with pytest.raises(TypeError, match="takes 7 arguments, got 5"):
        layer.step(*arguments()[:5])


def test_tensors_without_memory_are_refused():
    pool, layer = make()
    add_pages(pool, 8)
    q, k, v = tokens((2, 2, 2, 16), 3)
    for bad in (k.to("meta"), k.to_sparse(), k.to_mkldnn()):
        with pytest.raises((TypeError, ValueError, RuntimeError, BufferError)):
            layer.step(q, bad, v, None, 1.0, None)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(k)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        layer.step(q, fake, v, None, 1.0, None)
    assert layer.seen(0) == 0


@pytest.mark.parametrize("sizes", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 2, 3, 1), (1, 2, 1, 1), (1, 1, 1, 0), (-1, 1, 1, 1)])
def test_layers_of_impossible_sizes(sizes):
    with pytest.raises(ValueError, match="rows, kv_heads and window must be at least 1"):
        _core.Layer(_core.Pool("float32", 8), *sizes)


def test_pools_of_impossible_kinds():
    for dim in (0, -1, 1025):
        with pytest.raises(ValueError, match="head_dim must be between 1 and 1024"):
            _core.Pool("float32", dim)
    with pytest.raises(TypeError, match="'float64' not supported"):
        _core.Pool("float64", 8)
    with pytest.raises(TypeError):
        _core.Layer(object(), 1, 1, 1, 1)
    assert _core.Pool("float16", 1024).page_bytes == 2 * 16 * 1024 * 2


def test_rows_and_heads_that_do_not_exist():
    pool, layer = make()
    step(pool, layer, *tokens((2, 2, 2, 16), 20))
    out = np.zeros((20, 16), np.float32)
    for row, head in ((2, 0), (-1, 0), (0, 2), (0, -1)):
        with pytest.raises(IndexError):
            layer.positions(row, head)
        with pytest.raises(IndexError):
            layer.read(row, head, False, out)
    for row in (2, -1):
        for call in (
            lambda r=row: layer.seen(r),
            lambda r=row: layer.queries(r),
            lambda r=row: layer.score(r, RKV, out),
            lambda r=row: layer.evict(r, np.zeros(2, np.int64), out, 0, np.zeros(2)),
        ):
            with pytest.raises(IndexError):
                call()
    for source in ([2], [-1, 0], []):
        with pytest.raises(ValueError, match="rows"):
            layer.reorder(np.array(source, np.int64))
    assert layer.rows == 2


def test_buffers_that_do_not_fit():
    pool, layer = make()
    step(pool, layer, *tokens((2, 2, 2, 16), 20))
    before = snapshot(layer)
    good = {
        "totals": np.full(2, 12, np.int64),
        "protect": np.zeros(2, np.int64),
        "score": RKV,
        "route": ROUTE,
        "budgets": np.zeros((2, 2), np.int64),
        "lost": np.zeros((2, 2)),
        "cut": np.zeros(2, np.bool_),
    }
    locked = np.zeros((2, 2), np.int64)
    locked.flags.writeable = False
    for name, bad, error in [
        ("totals", np.full(3, 12, np.int64), ValueError),
        ("totals", np.full(2, 12.0), ValueError),
        ("totals", [12, 12], TypeError),
        ("totals", np.full(2, 7, np.int64), ValueError),  # below the windows
        ("totals", np.full((2, 2), 12, np.int64)[:, 0], (ValueError, BufferError)),
        ("protect", np.zeros(2, np.int32), ValueError),
        ("score", (9, 0.1, 0.5, 7, 0), ValueError),
        ("score", (0, 1.1, 0.5, 7, 0), ValueError),
        ("score", (0, float("nan"), 0.5, 7, 0), ValueError),
        ("score", (0, 0.1, float("nan"), 7, 0), ValueError),
        ("score", (0, 0.1, 0.5, 6, 0), ValueError),
        ("score", (0, 0.1, 0.5, -1, 0), ValueError),
        ("score", (0, 0.1, 0.5, 7), TypeError),
        ("score", None, (TypeError, SystemError)),
        ("route", (9, 0.5, 0.25, 2.0, 0.25, 0.2), ValueError),
        ("route", (1, -1.0, 0.25, 2.0, 0.25, 0.2), ValueError),
        ("route", (1, 0.5, 0.25, 0.5, 0.25, 0.2), ValueError),
        ("route", (1, 0.5, 0.25, 2.0, 1.5, 0.2), ValueError),
        ("route", (2, 0.5, 0.25, 2.0, 0.25, float("nan")), ValueError),
        ("route", "route", (TypeError, SystemError)),
        ("budgets", locked, (ValueError, BufferError)),
        ("budgets", np.zeros(3, np.int64), ValueError),
        ("lost", np.zeros((2, 2), np.float32), ValueError),
        ("cut", np.zeros(2, np.int8), ValueError),
    ]:
        with pytest.raises(error):
            layer.compress(*{**good, name: bad}.values())
        assert_same(snapshot(layer), before)
    with pytest.raises(ValueError, match="items"):
        layer.slots(np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="items"):
        layer.read(0, 0, False, np.zeros((19, 16), np.float32))
    with pytest.raises(ValueError, match="format"):
        layer.read(0, 0, False, np.zeros((20, 16)))
    with pytest.raises(ValueError):
        layer.crop(-1)


# ---- Threads ---------------------------------------------------------------------------------------------------------


def test_another_thread_is_told():
    pool, layer = make(rows=8, heads=2, group=4, dim=128)
    shape = (8, 2, 4, 128)
    for seed in range(4):
        step(pool, layer, *tokens(shape, 250, seed=seed), attend=False)
    q, k, v = tokens(shape, 200)
    out = torch.empty(8, 200, 8, 128)
    add_pages(pool, 8 * 2 * 30)
    one = tokens(shape, 1)
    done, told, wrong = threading.Event(), [], []

    def work():
        try:
            for _ in range(2):
                layer.step(q, k, v, None, 0.1, out)
        finally:
            done.set()

    worker = threading.Thread(target=work)
    calls = [
        lambda: layer.reorder(np.arange(8)),
        lambda: layer.crop(0),
        lambda: pool.trim(0),
        lambda: cut(pool, layer, 2, [-1] * 8),
    ]
    worker.start()
    while not done.wait(0.002):
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                told.append(str(error))
            except Exception as error:
                wrong.append(error)
    worker.join()
    assert not wrong
    assert told
    assert set(told) == {"the cache is in use by another thread"}
    assert layer.seen(0) == 1400
    out = step(pool, layer, *one)  # and the cache is free again, from whatever thread
    assert out.isfinite().all()


def test_reading_beside_another_thread_is_refused():
    """In a process of its own: what would be read is being moved meanwhile."""
    code = """
    import importlib.util, sys, threading, time, numpy as np, torch
    spec = importlib.util.spec_from_file_location("reasonalloc._core", sys.argv[1])  # without transformers
    _core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(_core)
    torch.set_num_threads(1)
    pool = _core.Pool("float32", 128)
    layer = _core.Layer(pool, 8, 2, 8, 8)
    pool.add_slab(torch.empty(8 * 2 * 80 * pool.page_bytes, dtype=torch.uint8))
    k = torch.randn(8, 2, 600, 128)
    q = torch.randn(8, 8, 600, 128)
    layer.step(q, k, k, None, 0.1, None)
    out = torch.empty(8, 600, 8, 128)
    worker = threading.Thread(target=lambda: layer.step(q, k, k, None, 0.1, out))
    room = np.empty((1200, 128), np.float32)
    slab = torch.empty(pool.page_bytes, dtype=torch.uint8)
    calls = {
        "positions": lambda: layer.positions(0, 0),
        "slots": lambda: layer.slots(np.zeros((8, 2), np.int64)),
        "queries": lambda: layer.queries(0),
        "seen": lambda: layer.seen(0),
        "read": lambda: layer.read(0, 0, False, room),
        "add_slab": lambda: pool.add_slab(slab),
    }
    worker.start()
    time.sleep(0.05)
    for name, call in calls.items():
        assert worker.is_alive(), "too fast"
        try:
            call()
        except RuntimeError:
            continue
        print(name)
    worker.join()
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), _core.__file__],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr[-500:]) == (0, "", "")
