"""Any sequence of calls of layers that share a pool, against plain lists and float64."""

import numpy as np
import oracle
import oracle_spans
import oracle_statistics as gathered
import oracle_values
import pytest
import torch
from backends import DTYPES
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from layer_model import Layer, Row
from layers import assert_same, positions, read, slots, snapshot

from reasonalloc import _core

pytestmark = pytest.mark.core
EPS = {torch.float32: 5e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SCORERS = [x for x in _core.scorers() if x != "triattention"]  # which needs to be told of the queries
LAYERS = st.integers(0, 2)  # of those that there are
ROWS = st.integers(0, 3)
LAYOUTS = st.sampled_from(["all", "left", "right", "random", "packed"])
TOKEN_DTYPES = st.sampled_from(list(DTYPES.values()))


class Machine(RuleBasedStateMachine):
    """Everything readable is compared after each call."""

    def __init__(self, backend, page_format):
        super().__init__()
        self.backend, self.stored = backend, DTYPES[page_format]
        self.page_format = page_format
        self.layers = []

    @initialize(
        rows=st.integers(1, 3),
        heads=st.integers(1, 3),
        group=st.sampled_from([1, 3]),
        dim=st.sampled_from([1, 5, 16, 20]),
        window=st.sampled_from([1, 3, 8]),
        scorer=st.sampled_from([None, *SCORERS]),
        softcap=st.sampled_from([0.0, 1.5]),
    )
    def start(self, rows, heads, group, dim, window, scorer, softcap):
        self.heads, self.group, self.dim, self.window, self.softcap = heads, group, dim, window, softcap
        self.query_heads, self.scale = heads * group, float(np.float32(0.7 / dim**0.5))
        self.pool = self.backend.pool(self.page_format, dim)
        if scorer and not self.backend.supports(scorer):
            with pytest.raises(ValueError, match="has no scorer"):
                _core.Layer(self.pool, rows, heads, self.query_heads, window, scorer, 5)
            scorer = None
        self.scorer, self.stats = (
            scorer,
            gathered.Stats(decay=0.9, activation=0.05, relative=dim == 16, birth=dim == 20),
        )
        core = _core.Layer(self.pool, rows, heads, self.query_heads, window, scorer, 5, tuple(self.stats))
        self.layers = [Layer(core, [Row(heads) for _ in range(rows)])]
        self.random, self.peak = np.random.default_rng(rows + 3 * heads + 9 * dim), 0
        self.append(self.layers[0], 40, "random", torch.float32, True, False, False)

    def pick(self, layer):
        return self.layers[layer % len(self.layers)]

    def until_it_fits(self, call):
        while missing := call():
            self.backend.add_pages(self.pool, missing)

    # ---- Steps ----

    def tensor(self, dtype, heads, rows, places, scale=1.0):
        return self.backend.tensor(self.random.standard_normal((rows, heads, places, self.dim)) * scale, dtype)

    @rule(which=LAYERS, layout=LAYOUTS, dtype=TOKEN_DTYPES, with_sinks=st.booleans(), announced=st.booleans())
    def decode(self, which, layout, dtype, with_sinks, announced):
        self.append(self.pick(which), 1, layout, dtype, True, with_sinks, announced)

    @rule(which=LAYERS, most=st.integers(2, 60), layout=LAYOUTS, dtype=TOKEN_DTYPES, attend=st.booleans())
    def prefill(self, which, most, layout, dtype, attend):
        self.append(self.pick(which), most, layout, dtype, attend, False, False)

    @rule(which=LAYERS, dtype=TOKEN_DTYPES, scorer=st.sampled_from(SCORERS))
    def decode_and_cut(self, which, dtype, scorer):
        """The steps before a cut announce it."""
        layer = self.pick(which)
        for left in range(self.window - 1, -1, -1):
            self.append(layer, 1, "all", dtype, True, False, left)
        self.cut(which, "phases", scorer, 1, 2)

    def append(self, layer, most, layout, dtype, attend, with_sinks, announced):
        """announced: False, True for count-downs that may be wrong, or a count-down."""
        random, rows = self.random, len(layer.rows)
        fresh = np.full(rows, most) if layout == "all" else random.integers(0, most + 1, rows)
        begin = np.zeros(rows + 1, np.int64)
        np.cumsum(fresh, out=begin[1:])
        total, places = int(begin[-1]), most
        if not total:
            return
        index = {
            "all": lambda n: np.arange(n),
            "left": lambda n: np.arange(most - n, most),
            "right": lambda n: np.arange(n),
            "random": lambda n: np.sort(random.permutation(most)[:n]),
            "packed": lambda n: np.arange(n),
        }[layout]
        index = np.concatenate([index(n) for n in fresh])
        packed = layout == "packed"
        if packed:
            index, places = np.arange(total), total
        given = 1 if packed else rows
        q = self.tensor(dtype, self.query_heads, given, places)
        k, v = (self.tensor(dtype, self.heads, given, places) for _ in range(2))
        if random.random() < 0.5:  # neighbours that resemble each other
            k = k.float().cumsum(2).to(dtype) * 0.3
        sinks = random.standard_normal(self.query_heads).astype(np.float32) if with_sinks else None
        cut_in = None
        if announced is not False:
            cut_in = random.integers(-1, self.window + 1, rows) if announced is True else np.full(rows, announced)
        out = torch.full((given, places, self.query_heads, self.dim), 7.0, dtype=dtype, device=self.backend.device)
        listed = (None, None) if layout == "all" else (begin, index)
        arguments = (
            q,
            k,
            v,
            out if attend else None,
            self.scale,
            cut_in,
            *listed,
            self.softcap,
            self.backend.sinks(sinks),
        )
        self.until_it_fits(lambda: layer.core.step(*arguments))
        layer.stays, layer.sinks = None, sinks
        q, k, v, out = (x.cpu() for x in (q, k, v, out))
        for r, row in enumerate(layer.rows):
            source, at = 0 if packed and rows > 1 else r, index[begin[r] : begin[r + 1]]
            for place in at:
                for h, head in enumerate(row.heads):
                    stored = (x[source, h, place].to(self.stored).float().numpy() for x in (k, v))
                    head.append(row.tokens, *stored, self.stats.new(row.tokens))
                    self.gather(head, h, q[source, h * self.group : (h + 1) * self.group, place], row.tokens, sinks)
                row.queries = [*row.queries, q[source, :, place].float().numpy()][-self.window :]
                row.tokens += 1
            if attend:
                self.check_output(row, q[source], out[source], at, sinks)
        if attend:
            untouched = torch.ones(out.shape[:2], dtype=torch.bool)
            for r in range(rows):
                untouched[0 if packed and rows > 1 else r, index[begin[r] : begin[r + 1]]] = False
            assert (out[untouched] == 7).all()

    def gather(self, head, h, query, now, sinks):
        if self.scorer in gathered.GATHERED:
            own = None if sinks is None else sinks[h * self.group : (h + 1) * self.group]
            p = gathered.weights(query.float().numpy(), head.keys, self.scale, self.softcap, own)
            head.stats = gathered.added(head.stats, p, now, self.stats)

    def check_output(self, row, q, out, at, sinks):
        tolerance = EPS[out.dtype]
        for i in {0, len(at) // 2, len(at) - 1} if len(at) else ():
            for h in range(self.query_heads):
                head = row.heads[h // self.group]
                seen = len(head) - (len(at) - 1 - i)
                sink = -np.inf if sinks is None else float(sinks[h])
                query = q[h, at[i]].double().numpy()
                want = oracle.attend_one(
                    query, head.keys[:seen], head.values[:seen], self.scale, self.softcap, sink, np.ones(seen, bool)
                )
                np.testing.assert_allclose(out[at[i], h].double(), want, rtol=tolerance, atol=tolerance + 5e-6)

    @rule(which=LAYERS, of=st.sampled_from([1, 2]), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
    def refuse(self, which, of, bad):
        layer = self.pick(which)
        if self.backend.module:  # it finds out later: test_devices.py
            return
        self.refuse_cut(layer)
        rows = len(layer.rows)
        arguments = [self.tensor(torch.float32, h, rows, 3) for h in (self.query_heads, self.heads, self.heads)]
        arguments[of][rows - 1, self.heads - 1, 2, self.dim - 1] = bad
        before = snapshot(layer.core)
        with pytest.raises(ValueError, match="NaN or infinity"):
            self.until_it_fits(lambda: layer.core.step(*arguments, None, self.scale))
        assert_same(snapshot(layer.core), before)

    # ---- Cuts ----

    @rule(
        which=LAYERS,
        how=st.sampled_from(["whole", "phases", "phases", "abandon", "leave"]),
        scorer=st.sampled_from([None, *SCORERS]),
        allocator=st.integers(0, 2),
        protect=st.integers(0, 20),
    )
    def cut(self, which, how, scorer, allocator, protect):
        layer, rows = self.pick(which), range(len(self.pick(which).rows))
        code, average = scorer == "lazy" and allocator == 1, scorer == "spans" and allocator == 1
        config = scorer and (scorer, 0.3, 0.55, 5, 11, 0.25, code, average, -1, 0, 3)
        route = (allocator, 0.5, 0.25, 2.0, 0.25, 0.2)
        least = self.heads * self.window
        totals = np.array([self.random.integers(least, max(least, row.slots) + 1) for row in layer.rows])
        totals[self.random.random(len(rows)) < 0.3] = -1
        cut = {r for r in rows if 0 <= totals[r] < layer.rows[r].slots}
        budgets, lost, flags = self.results(layer)
        protects = np.full(len(rows), protect)
        whole = how == "whole" and scorer is not None
        kept = gathered.GATHERED.get(self.scorer)
        lacks = scorer is not None and not self.backend.supports(scorer)
        if lacks or (scorer in gathered.GATHERED and gathered.GATHERED[scorer] != kept):
            with pytest.raises(ValueError, match="scores"):  # the layer does not keep what it needs; nothing changes
                layer.core.cut_score(totals, config, flags)
            return
        core = layer.core.copy() if whole else layer.core
        core.cut_score(totals, config, flags)
        assert set(np.flatnonzero(flags)) == cut
        self.sinks_now = layer.sinks
        scores = {r: self.scores(core, layer.rows[r], r, config, totals[r]) for r in cut}
        if scorer is None and self.random.random() < 0.5:  # budgets as they come, some of them more than there is
            for r in cut:
                for h, head in enumerate(layer.rows[r].heads):
                    budgets[r, h] = self.random.integers(min(self.window, len(head)), len(head) + 3)
        else:
            core.cut_allocate(protects, route, budgets)
            assert all(budgets[r].sum() == totals[r] for r in cut)
        core.cut_choose(protects, budgets, lost)
        stays = {r: self.chosen(core, layer, r, scores[r], budgets[r], protect, lost[r]) for r in cut}
        if whole:
            del core
            again = self.results(layer)
            self.until_it_fits(lambda: layer.core.cut(totals, protects, config, route, *again))
            assert set(np.flatnonzero(again[2])) == cut
            for r in cut:
                assert (again[0][r] == budgets[r]).all() and again[1][r].tobytes() == lost[r].tobytes()
        elif how == "abandon":
            core.cut_abandon()
            with pytest.raises(ValueError, match="no cut has begun"):
                core.cut_apply()
            layer.stays = None
            return
        layer.stays = stays
        if how == "phases" or (how == "whole" and not whole):
            self.until_it_fits(core.cut_apply)
        if how != "leave":
            layer.evict()

    def results(self, layer):
        shape = (len(layer.rows), self.heads)
        return np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape[0], np.bool_)

    def scores(self, core, row, number, config, total):
        """A row's scores by head: held against the definition or, without a scorer, made up and put in place."""
        counts = [max(0, len(head) - self.window) for head in row.heads]
        flat = np.zeros(sum(counts), np.float32)
        if config is None:
            flat[:] = (
                self.random.integers(0, 3, len(flat)) if self.random.random() < 0.5 else self.random.random(len(flat))
            )
            core.cut_set_scores(number, flat)
            return np.split(flat, np.cumsum(counts)[:-1])
        core.cut_scores(number, flat)
        scores = np.split(flat, np.cumsum(counts)[:-1])
        for h, (head, got) in enumerate(zip(row.heads, scores, strict=True)):
            want = self.expected_scores(row, h, head, config, total) if len(got) else None
            if want is not None:
                rtol = 1e-3 if config[0] in oracle_values.SCORERS else 1e-6
                np.testing.assert_allclose(got, want, rtol=rtol, atol=2e-5)
        return scores

    def expected_scores(self, row, h, head, config, total):
        """None where they are not comparable: hashes, fewer queries than the window, or rounding that decides."""
        name, alpha, threshold, kernel, _seed, recent, code, average, _large, _sink, span = config
        if name == "h2o":
            newest = int(recent * (total // self.heads))
            return gathered.h2o(head.stats, self.window, self.group, row.tokens, newest)
        if name in ("lazy", "raas"):
            if any(slot.unsure for slot in head.stats):
                return None
            if name == "raas":
                return gathered.raas(head.stats, self.window)
            return gathered.lazy(head.stats, self.window, row.tokens - 1, code)
        if name == "recency":
            return head.positions[: len(head) - self.window]
        if name in oracle_values.SCORERS:
            group = slice(h * self.group, (h + 1) * self.group)
            q = np.array(row.queries).reshape(-1, self.query_heads, self.dim)[:, group].swapaxes(0, 1)
            state = (q, head.keys, head.values, head.positions, h, row.tokens, self.window)
            sinks = None if self.sinks_now is None else self.sinks_now[group]
            share = int(total) // self.heads
            return oracle_values.expected(name, state, kernel, _seed, share, self.scale, self.softcap, sinks)
        if name == "random" or len(row.queries) < self.window or self.softcap:
            return None
        queries = np.stack(row.queries, 1)[h * self.group : (h + 1) * self.group] * (self.scale * self.dim**0.5)
        important = oracle.importance(queries, head.keys, kernel)
        if name == "importance":
            return important
        if oracle.redundancy_margin(head.keys, threshold) < 1e-5:
            return None
        level = 1 / len(head) if name in ("rkv-centred", "spans") else 0
        redundant = oracle.redundancy(head.keys, threshold)[: len(important)] - level
        scores = alpha * important - (1 - alpha) * redundant
        return oracle_spans.shared(scores, head.positions, span, average) if name == "spans" else scores

    def chosen(self, core, layer, number, scores, budgets, protect, lost):
        row, stays = layer.rows[number], []
        for h, head in enumerate(row.heads):
            stay = head.chosen(scores[h], int(budgets[h]), protect, self.window)
            assert np.frombuffer(core.cut_kept(number, h), np.int32).tolist() == stay
            group = slice(h * self.group, (h + 1) * self.group)
            want, gone = 0, ~np.isin(np.arange(len(head)), stay)
            if row.queries and gone.any():
                sinks = None if layer.sinks is None else layer.sinks[group]
                want = oracle.lost_mass(row.queries[-1][group], head.keys, self.scale, gone, self.softcap, sinks)
            assert lost[h] == pytest.approx(want, abs=1e-5)
            stays.append(stay)
        return stays

    @rule(which=LAYERS)
    def apply(self, which):
        """A cut that was left: other layers may have taken pages, or been trimmed, since."""
        layer = self.pick(which)
        if layer.stays is None:
            with pytest.raises(ValueError, match="no cut has begun"):
                layer.core.cut_apply()
            return
        self.until_it_fits(layer.core.cut_apply)
        layer.evict()

    def refuse_cut(self, layer):
        """One row has too small a total: none is cut."""
        totals = np.array([r.slots - 1 if r.slots > self.heads * self.window else -1 for r in layer.rows])
        worst = int(np.argmax([r.slots for r in layer.rows]))
        totals[worst] = self.heads * self.window - 1
        if layer.rows[worst].slots < self.heads * self.window:
            return
        before, results = snapshot(layer.core), self.results(layer)
        score, route = ("recency", 0.1, 0.5, 7, 0), (1, 0.5, 0.25, 2.0, 0.25, 0.2)
        with pytest.raises(ValueError, match=r"budgets|cut"):
            layer.core.cut(totals, np.zeros(len(totals), np.int64), score, route, *results)
        assert_same(snapshot(layer.core), before)
        assert not results[2].any()
        layer.stays = None

    # ---- Rows ----

    @rule(
        which=LAYERS,
        how=st.sampled_from(["reorder", "reorder", "fork", "fork", "fork", "release", "release", "reset"]),
        source=st.lists(st.integers(-1, 3), min_size=1, max_size=4),
        to=ROWS,
    )
    def move_rows(self, which, how, source, to):
        layer = self.pick(which)
        if how == "reorder":
            self.reorder(layer, source)
        elif how == "fork":
            self.fork(layer, source[0] % len(layer.rows), to % len(layer.rows))
        elif how == "release":
            layer.core.release(to % len(layer.rows))
            layer.rows[to % len(layer.rows)].empty()
            layer.stays = None
        else:
            layer.core.reset()
            for row in layer.rows:
                row.empty()
            layer.stays = None

    def reorder(self, layer, source):
        source = [s if s < len(layer.rows) else -1 for s in source]
        layer.core.reorder(np.array(source, np.int64))
        rows = [Row(self.heads) if s < 0 else layer.rows[s].copy() for s in source]
        for row in layer.rows:
            row.empty()
        layer.rows, layer.stays = rows, None

    def fork(self, layer, source, to):
        layer.core.fork(source, to)
        if source != to:
            copy = layer.rows[source].copy()
            layer.rows[to].empty()
            layer.rows[to], layer.stays = copy, None

    @rule(which=LAYERS, counts=st.lists(st.integers(0, 20), min_size=4, max_size=4), alike=st.booleans())
    def crop(self, which, counts, alike):
        layer = self.pick(which)
        counts = [counts[0]] * len(layer.rows) if alike else counts[: len(layer.rows)]
        argument = counts[0] if alike else np.array(counts, np.int64)
        if not all(row.can_crop(n) for row, n in zip(layer.rows, counts, strict=True)):
            before = snapshot(layer.core)
            with pytest.raises(ValueError, match="crop"):
                layer.core.crop(argument)
            assert_same(snapshot(layer.core), before)
            return
        layer.core.crop(argument)
        for row, n in zip(layer.rows, counts, strict=True):
            row.crop(n)
        layer.stays = None

    @rule(which=LAYERS, from_row=ROWS, to=LAYERS, to_row=ROWS)
    def restore(self, which, from_row, to, to_row):
        """A row as it is read, into a place that is empty or becomes it."""
        layer, other = self.pick(which), self.pick(to)
        from_row, to_row = from_row % len(layer.rows), to_row % len(other.rows)
        source, target = layer.rows[from_row], other.rows[to_row]
        if source is target or not source.tokens:
            return
        parts = [
            (
                positions(layer.core, from_row, h).copy(),
                *(read(layer.core, from_row, h, self.dim, v) for v in (False, True)),
            )
            for h in range(self.heads)
        ]
        count, raw = layer.core.queries(from_row)
        queries = np.frombuffer(raw, np.float32)
        if target.tokens:
            with pytest.raises(ValueError, match="restore"):
                other.core.restore(to_row, 0, *parts[0])
            other.core.release(to_row)
            target.empty()
        for h, part in enumerate(parts):
            columns = np.frombuffer(layer.core.columns(from_row, h)[1], np.int32).copy()
            self.until_it_fits(lambda h=h, part=part: other.core.restore(to_row, h, *part))
            other.core.restore_columns(to_row, h, columns)
        if any(len(head) for head in source.heads):
            with pytest.raises(ValueError, match="step"):  # half a row takes no tokens
                rows = len(other.rows)
                q, k = (self.tensor(torch.float32, n, rows, 1) for n in (self.query_heads, self.heads))
                self.until_it_fits(lambda: other.core.step(q, k, k, None, self.scale))
        other.core.restore_row(to_row, source.tokens, count, queries, self.scale, self.softcap)
        for head, filled in zip(source.heads, target.heads, strict=True):
            for slot in zip(head.positions, head.keys, head.values, head.stats, strict=True):
                filled.append(*slot)
        target.tokens, target.queries, other.stays = source.tokens, list(source.queries), None

    # ---- Layers and the pool ----

    @rule(which=LAYERS)
    def copy_or_drop(self, which):
        layer = self.pick(which)
        if len(self.layers) == 3:
            self.layers.remove(layer)
            for row in layer.rows:
                row.empty()
            return
        copy = Layer(layer.core.copy(), [row.copy() for row in layer.rows])
        copy.sinks = layer.sinks
        self.layers.append(copy)

    @rule(keep=st.sampled_from([0, 0, 3, 100]))
    def trim(self, keep):
        before = self.pool.info()
        self.pool.trim(keep)
        _pages, used, free, _, _ = self.pool.info()
        assert used == before[1]
        assert free >= min(keep, before[2])

    @invariant()
    def everything_is_where_it_belongs(self):
        for layer in self.layers:
            core = layer.core
            assert core.rows == len(layer.rows)
            expected = [[len(head) for head in row.heads] for row in layer.rows]
            np.testing.assert_array_equal(slots(core, self.heads), expected)
            for r, row in enumerate(layer.rows):
                assert core.tokens(r) == row.tokens
                count, raw = core.queries(r)
                given = np.frombuffer(raw, np.float32).reshape(self.query_heads, count, self.dim)
                np.testing.assert_array_equal(
                    given.swapaxes(0, 1),
                    np.array(row.queries).reshape(count, *given[:, 0].shape) if count else given.swapaxes(0, 1),
                )
                assert count == len(row.queries)
                for h, head in enumerate(row.heads):
                    assert positions(core, r, h).tolist() == head.positions
                    gathered.check_columns(core, r, h, head.stats, self.scorer)
                    for values, want in ((False, head.keys), (True, head.values)):
                        np.testing.assert_array_equal(
                            read(core, r, h, self.dim, values), np.reshape(want, (-1, self.dim))
                        )
        if not self.layers:
            return
        pages, used, free, peak, _ = self.pool.info()
        distinct = {id(page) for x in self.layers for row in x.rows for head in row.heads for page in head.pages}
        assert used == len(distinct)  # neither lost nor shared by mistake
        assert pages == used + free
        self.peak = max(self.peak, used)
        assert peak >= self.peak

    def teardown(self):
        pool = getattr(self, "pool", None)
        self.layers.clear()
        assert pool is None or pool.info()[1] == 0  # all pages are home


def test_any_sequence_of_calls(backend, page_format):
    number = [*DTYPES].index(page_format) + sum(map(ord, backend.name))
    run_state_machine_as_test(
        seed(number)(lambda: Machine(backend, page_format)),
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
