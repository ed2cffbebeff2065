"""Cuts on every backend, format and scorer: scores by definition, rows alone as in a batch, phases as the whole cut."""

import numpy as np
import oracle
import oracle_spans
import oracle_values
import pytest
import torch
from layers import positions, read, set_centres, slots
from oracle_statistics import GATHERED

from reasonalloc import _core

pytestmark = pytest.mark.core
HEADS, GROUP, DIM, WINDOW, INTERVAL = 2, 3, 20, 4, 6
QUERY_HEADS = HEADS * GROUP
SCALE = 0.2
SPAN = 6
ROUTE = (1, 0.5, 0.25, 2.0, 0.25, 0.2)


def config(scorer):
    return scorer, 0.3, 0.5, 5, 11, 0.5, False, False, -1, 0, SPAN


class Layer:
    """A layer with a pool of its own, which grows as it asks."""

    def __init__(self, backend, page_format, rows, scorer):
        self.backend, self.scorer = backend, scorer
        self.pool = backend.pool(page_format, DIM)
        self.core = _core.Layer(self.pool, rows, HEADS, QUERY_HEADS, WINDOW, scorer, 2 * INTERVAL)
        if scorer == "triattention":
            set_centres(self.core, QUERY_HEADS, DIM)

    def copy(self):
        twin = object.__new__(Layer)
        twin.__dict__.update(self.__dict__, core=self.core.copy())
        return twin

    def twin(self):
        """Row 0 as it is read, restored in a layer of a pool of its own."""
        other = Layer(self.backend, self.pool.format, 1, self.scorer)
        for head in range(HEADS):
            keys, values = (read(self.core, 0, head, DIM, which) for which in (False, True))
            while missing := other.core.restore(0, head, positions(self.core, 0, head).copy(), keys, values):
                self.backend.add_pages(other.pool, missing)
        count, raw = self.core.queries(0)
        other.core.restore_row(0, self.core.tokens(0), count, np.frombuffer(raw, np.float32), SCALE, 0.0)
        return other

    def step(self, given, cut_in=None):
        """given: for each row its tokens or None; all rows packed. Returns the output of each row."""
        begin = np.zeros(len(given) + 1, np.int64)
        np.cumsum([0 if x is None else x[0].shape[1] for x in given], out=begin[1:])
        q, k, v = (torch.cat([x[i] for x in given if x is not None], 1)[None] for i in range(3))
        out = torch.empty(1, q.shape[2], QUERY_HEADS, DIM, dtype=q.dtype, device=q.device)
        while missing := self.core.step(q, k, v, out, SCALE, cut_in, begin, np.arange(begin[-1])):
            self.backend.add_pages(self.pool, missing)
        return [out[0, begin[r] : begin[r + 1]] for r in range(len(given))]

    def cut(self, totals):
        rows = len(totals)
        budgets, lost, flags = np.zeros((rows, HEADS), np.int64), np.zeros((rows, HEADS)), np.zeros(rows, np.bool_)
        arguments = (np.asarray(totals), np.full(rows, 2), config(self.scorer), ROUTE, budgets, lost, flags)
        while missing := self.core.cut(*arguments):
            self.backend.add_pages(self.pool, missing)
        return budgets, lost, flags

    def row(self, row):
        """Everything that it shows of a row."""
        shown = [self.core.tokens(row), self.core.queries(row)]
        for head in range(HEADS):
            shown += [positions(self.core, row, head).tolist(), self.core.columns(row, head)]
            shown += [read(self.core, row, head, DIM, values).tobytes() for values in (False, True)]
        return shown

    def queries(self, row):
        count, raw = self.core.queries(row)
        return np.frombuffer(raw, np.float32).reshape(QUERY_HEADS, count, DIM).astype(np.float64)


def new_tokens(backend, random, count, dtype=torch.float32):
    """Queries, keys and values of one row; keys resemble the one before."""
    q, v = random.standard_normal((QUERY_HEADS, count, DIM)), random.standard_normal((HEADS, count, DIM))
    k = np.cumsum(random.standard_normal((HEADS, count, DIM)) * 0.4, 1) + random.standard_normal((HEADS, 1, DIM))
    return tuple(backend.tensor(x, dtype) for x in (q, k, v))


@pytest.mark.parametrize("seed", range(2))
def test_a_row_alone_is_the_row_in_a_batch(backend, page_format, scorer, seed):
    """Bit for bit, whatever the neighbours do: rows join and leave, each with its own tokens and its own count-down."""
    random = np.random.default_rng(seed)
    batch = Layer(backend, page_format, 3, scorer)
    alone = [Layer(backend, page_format, 1, scorer) for _ in range(3)]
    left, cuts = [INTERVAL] * 3, 0
    for _turn in range(40):
        given = [None if random.random() < 0.3 else new_tokens(backend, random, 1) for _ in range(3)]
        row = int(random.integers(3))
        if random.random() < 0.2:
            given[row] = new_tokens(backend, random, int(random.integers(2, 60)))
        if all(x is None for x in given):
            continue
        left = [n if x is None else n - 1 for n, x in zip(left, given, strict=True)]
        outs = batch.step(given, np.array(left))
        for r in range(3):
            if given[r] is not None:
                (own,) = alone[r].step([given[r]], np.array([left[r]]))
                assert torch.equal(own, outs[r])
        totals = np.array([40 if n <= 0 else -1 for n in left])
        budgets, lost, flags = batch.cut(totals)
        for r in np.flatnonzero(totals >= 0):
            own = alone[r].cut([40])
            assert own[2][0] == flags[r]
            if flags[r]:
                assert (own[0][0] == budgets[r]).all()
                assert own[1][0].tobytes() == lost[r].tobytes()
            cuts += int(flags[r])
            left[r] = INTERVAL
        event, other = random.random(), int(random.integers(3))
        if event < 0.1:
            batch.core.release(row)
            alone[row].core.reset()
        elif event < 0.2 and other != row:
            batch.core.fork(row, other)
            alone[other] = alone[row].copy()
            left[other] = left[row]
        for r in range(3):
            assert batch.row(r) == alone[r].row(0)
    assert cuts > 2


def test_phases_are_the_whole_cut(backend, page_format, scorer):
    random = np.random.default_rng(3)
    layer = Layer(backend, page_format, 2, scorer)
    for total in (60, 50, 70):
        layer.step([new_tokens(backend, random, n) for n in (50, 37)])
        twin = layer.copy()
        budgets, lost, flags = layer.cut([total, 44])
        again, mass, begun = np.zeros_like(budgets), np.zeros_like(lost), np.zeros(2, np.bool_)
        protect, phases = np.full(2, 2), twin.core
        phases.cut_score(np.array([total, 44]), config(scorer), begun, protect)
        assert begun.tolist() == flags.tolist() == [True, True]
        phases.cut_allocate(protect, ROUTE, again)
        phases.cut_choose(protect, again, mass)
        kept = [np.frombuffer(phases.cut_kept(r, h), np.int32) for r in range(2) for h in range(HEADS)]
        assert [len(x) for x in kept] == budgets.reshape(-1).tolist()
        while missing := phases.cut_apply():
            backend.add_pages(layer.pool, missing)
        assert np.array_equal(again, budgets)
        assert mass.tobytes() == lost.tobytes()
        assert [twin.row(r) for r in range(2)] == [layer.row(r) for r in range(2)]


def expected_scores(layer, head):
    """Row 0's scores by definition, or None where rounding decides."""
    old, keys = positions(layer.core, 0, head), read(layer.core, 0, head, DIM, False).astype(np.float64)
    q, n = layer.queries(0)[head * GROUP : (head + 1) * GROUP] * (SCALE * DIM**0.5), len(old)
    name, alpha, threshold, kernel, *_ = config(layer.scorer)
    if name == "recency":
        return old[: n - WINDOW].astype(np.float64)
    if name == "importance":
        return oracle.importance(q, keys, kernel)
    if oracle.redundancy_margin(keys, threshold) < 1e-5:
        return None
    level = 1 / n if name in ("rkv-centred", "spans") else 0
    redundancy = oracle.redundancy(keys, threshold)[: n - WINDOW] - level
    scores = alpha * oracle.importance(q, keys, kernel) - (1 - alpha) * redundancy
    return oracle_spans.shared(scores, old, SPAN, False) if name == "spans" else scores


def scores_of(layer):
    """Row 0's scores, a list of each head."""
    counts = slots(layer.core, HEADS)[0] - WINDOW
    flat = np.zeros(int(counts.sum()), np.float32)
    twin = layer.core.copy()
    twin.cut_score(np.array([50]), config(layer.scorer), np.zeros(1, np.bool_))
    twin.cut_scores(0, flat)
    return np.split(flat, np.cumsum(counts)[:-1])


def test_scores_lost_mass_and_attention(backend, page_format, dtype, scorer):
    """Cut after cut; scores are gathered in the steps before the cut or, every other time, computed at it."""
    random = np.random.default_rng(4)
    layer, compared = Layer(backend, page_format, 1, scorer), 0
    layer.step([new_tokens(backend, random, 70, dtype)])
    tolerance = {torch.float32: 5e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    for turn in range(6):
        for left in range(INTERVAL - 1, -1, -1):
            (out,) = layer.step([new_tokens(backend, random, 1, dtype)], np.array([left]) if turn % 2 else None)
        before = {h: [read(layer.core, 0, h, DIM, v) for v in (False, True)] for h in range(HEADS)}
        old = [positions(layer.core, 0, h) for h in range(HEADS)]
        newest = layer.queries(0)[:, -1:]
        want = oracle.attend(newest, [before[h][0] for h in before], [before[h][1] for h in before], SCALE)
        np.testing.assert_allclose(out.double().cpu(), want, rtol=tolerance, atol=tolerance)
        for head, got in enumerate(scores_of(layer)):
            if scorer in (*GATHERED, "triattention"):  # test_calls.py, test_statistics.py and the latter's own
                compared += 1
            elif scorer in oracle_values.SCORERS:
                q = layer.queries(0)[head * GROUP : (head + 1) * GROUP]
                state = (q, *before[head], old[head], head, layer.core.tokens(0), WINDOW)
                want = oracle_values.expected(scorer, state, 5, 11, 50 // HEADS, SCALE)
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-8)
                compared += 1
            elif scorer == "random":
                assert ((got >= 0) & (got < 1)).all() and len(np.unique(got)) > len(got) // 2
                compared += 1
            elif (want := expected_scores(layer, head)) is not None:
                np.testing.assert_allclose(got, want, atol=3e-6)
                compared += 1
        budgets, lost, _ = layer.cut([50])
        assert budgets.sum() == 50
        for head, (keys, _values) in before.items():
            logits = newest[head * GROUP : (head + 1) * GROUP, 0] @ keys.T.astype(np.float64) * SCALE
            gone = ~np.isin(old[head], positions(layer.core, 0, head))
            assert lost[0, head] == pytest.approx(oracle.softmax(logits).mean(0)[gone].sum(), abs=2e-6)
    assert compared >= 6


def decode(layer, random, steps):
    """Two rows, a token a step and a cut every INTERVAL."""
    budgets, lost, flags = np.zeros((2, HEADS), np.int64), np.zeros((2, HEADS)), np.zeros(2, np.bool_)
    totals, protect, count_down = np.full(2, 40), np.zeros(2, np.int64), np.zeros(2, np.int64)
    q, k, v = (layer.backend.tensor(random.standard_normal((2, h, 1, DIM))) for h in (QUERY_HEADS, HEADS, HEADS))
    out = torch.empty(2, 1, QUERY_HEADS, DIM, device=layer.backend.device)
    for i in range(steps):
        k.mul_(-0.9).add_(v, alpha=0.3 * (i % 3))
        count_down[:] = INTERVAL - 1 - i % INTERVAL
        while missing := layer.core.step(q, k, v, out, SCALE, count_down):
            layer.backend.add_pages(layer.pool, missing + 16)
        if i % INTERVAL == INTERVAL - 1:
            arguments = (totals, protect, config(layer.scorer), ROUTE, budgets, lost, flags)
            while missing := layer.core.cut(*arguments):
                layer.backend.add_pages(layer.pool, missing)


def memory(layer):
    return layer.backend.allocations(), layer.pool.info()[0], layer.core.table()[0]


def test_nothing_is_allocated_in_a_decode_step(backend, page_format, scorer):
    """Nor in the cuts between."""
    layer, random = Layer(backend, page_format, 2, scorer), np.random.default_rng(5)
    decode(layer, random, 10 * INTERVAL)
    before = memory(layer)
    decode(layer, random, int(50 * layer.backend.effort) * INTERVAL)
    assert memory(layer) == before


def test_nothing_grows_with_what_was_evicted(backend, page_format):
    layer, random = Layer(backend, page_format, 2, "rkv"), np.random.default_rng(6)
    few, many = (int(n * backend.effort) for n in (300, 1500))
    decode(layer, random, few * INTERVAL)
    before = memory(layer)
    decode(layer, random, many * INTERVAL)
    assert layer.core.tokens(0) == (few + many) * INTERVAL
    assert memory(layer) == before


@pytest.mark.parametrize("threads", [3])
def test_the_number_of_threads_changes_nothing(backend, page_format, threads):
    if backend.module:
        pytest.skip("torch's threads have no part in it; test_devices.py changes the order of a device's")

    def run(scorer):
        random, layer = np.random.default_rng(7), Layer(backend, page_format, 3, scorer)
        tokens = [new_tokens(backend, random, n) for n in (300, 90, 1, 20)]
        shown = [*layer.step([tokens[0], None, tokens[1]])]
        for _ in range(3):
            shown += layer.step([tokens[2], tokens[3], None])
            shown += layer.cut([200, 30, 60])[:2]
        return [torch.as_tensor(x).cpu().numpy().tobytes() for x in shown], [layer.row(r) for r in range(3)]

    before, expected = torch.get_num_threads(), [run(scorer) for scorer in _core.scorers()]
    torch.set_num_threads(threads)
    try:
        assert [run(scorer) for scorer in _core.scorers()] == expected
    finally:
        torch.set_num_threads(before)


def test_rows_that_multiply(backend, page_format):
    """Each is the one that was. Restored rows have needed no memory to work in yet, and then many of them do."""
    random, source = np.random.default_rng(9), Layer(backend, page_format, 1, "rkv")
    tokens, rows = (700, 40) if backend.effort == 1 else (150, 6)
    source.step([new_tokens(backend, random, tokens)])
    one, many = source.twin(), source.twin()
    new = new_tokens(backend, random, 1)
    assert torch.equal(one.step([new])[0], many.step([new])[0])
    many.core.reorder(np.zeros(rows, np.int64))
    for left in range(WINDOW - 1, -1, -1):
        new = new_tokens(backend, random, 1)
        (expected,) = one.step([new], np.array([left]))
        outs = many.step([new] * rows, np.full(rows, left))
        assert all(torch.equal(out, expected) for out in outs)
    budgets, lost, _ = one.cut([tokens - 100])
    every = many.cut([tokens - 100] * rows)
    assert (every[0] == budgets).all() and (every[1] == lost).all()
    assert all(many.row(r) == one.row(0) for r in (0, rows // 2, rows - 1))


def test_large_keys_have_scores(backend):
    """Finite keys whose squares float32 cannot hold."""
    layer, random = Layer(backend, "float32", 1, "rkv"), np.random.default_rng(8)
    q, k, v = new_tokens(backend, random, 40)
    layer.step([(q * 1e-19, k * 1e19, v)])
    for head, got in enumerate(scores_of(layer)):
        np.testing.assert_allclose(got, expected_scores(layer, head), atol=3e-6)


def kept_by(layer, score, keep):
    """Positions of head 0 that stay of a row, by its best scores alone."""
    layer.core.cut_score(np.array([HEADS * keep]), score, np.zeros(1, np.bool_))
    budgets, lost = np.full((1, HEADS), keep), np.zeros((1, HEADS))
    layer.core.cut_choose(np.zeros(1, np.int64), budgets, lost)
    while missing := layer.core.cut_apply():
        layer.backend.add_pages(layer.pool, missing)
    return positions(layer.core, 0, 0).tolist()


@pytest.mark.parametrize("scorer", ["vase", "dkv"])
def test_sinks_stay_before_all_others(backend, scorer):
    """Also where they are none of the largest, and beside a token that outweighs all."""
    layer, random = Layer(backend, "float32", 1, scorer), np.random.default_rng(10)
    q, k, v = new_tokens(backend, random, 30)
    k[:, 20] *= 3000
    v[:, 20] *= 3000
    layer.step([(q, k, v)])
    score = (scorer, 0.3, 0.5, 5, 11, 0.5, False, True, 0, 2, SPAN)  # none of the largest, 2 sinks
    assert kept_by(layer, score, WINDOW + 2)[:2] == [0, 1]


def test_the_newest_stay_whatever_cropped_queries_gave(backend):
    layer, random = Layer(backend, "float32", 1, "h2o"), np.random.default_rng(11)
    layer.step([new_tokens(backend, random, 12)])
    for _ in range(12):
        layer.step([new_tokens(backend, random, 8)])
        layer.core.crop(8)
    layer.step([new_tokens(backend, random, 1)])
    assert kept_by(layer, (*config("h2o")[:5], 1.0), WINDOW + 3) == list(range(13 - WINDOW - 3, 13))
