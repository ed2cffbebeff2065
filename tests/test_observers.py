"""What observers of cuts are shown, and that looking on changes nothing."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, replace

import caches
import models
import numpy as np
import oracle
import pytest
import torch
from caches import assert_closed
from test_methods import config_of

import reasonalloc as ra
from reasonalloc.policy.layers import UniformLayers


@dataclass
class Seen:
    """A copy of a view."""

    layer: int
    row: int
    tokens: int
    positions: list
    scores: list
    budgets: list
    kept: list
    evicted: list
    lost: np.ndarray


class Watcher:
    """Keeps copies of all cuts, and where rows went."""

    def __init__(self):
        self.cuts, self.moves = [], []

    def __call__(self, cut):
        lists = ([x.tolist() for x in each] for each in (cut.positions, cut.kept, cut.evicted))
        positions, kept, evicted = lists
        scores = [np.array(x) for x in cut.scores]
        self.cuts.append(
            Seen(
                cut.layer,
                cut.row,
                cut.tokens,
                positions,
                scores,
                cut.budgets.tolist(),
                kept,
                evicted,
                np.array(cut.lost),
            )
        )

    def move_rows(self, source):
        self.moves.append(source.tolist())


def feed(cache, prompt=50, new=24, rows=1, padded=False):
    """Logits of every step."""
    ids, mask = models.prompt(prompt, rows=rows), None
    if padded:
        ids, mask = models.left_padded([models.prompt(prompt - 9 * r, seed=r)[0] for r in range(rows)])
    logits = [models.step(cache.model, cache, ids, mask)]
    for i in range(new):
        if mask is not None:
            mask = torch.cat([mask, torch.ones(rows, 1, dtype=torch.long)], 1)
        logits.append(models.step(cache.model, cache, models.prompt(1, rows=rows, seed=i + 1), mask))
    return logits


def held(cache):
    rows = len(cache.stats()["slots"])
    return [[p.tolist() for p in cache.positions(i, r)] for i in cache.stats()["layers"] for r in range(rows)]


MIXTURES = [
    {},
    {"smoothing": 0.5},
    {"keep_prompt": True, "sinks": 3},
    {"heads": "route", "keep_prompt": True},
    {"heads": "pooled", "layers": "wave", "scorer": "rkv"},
    {"scorer": "random", "seed": 4, "heads": "route"},
]


@pytest.mark.filterwarnings("ignore:h2o keeps")
@pytest.mark.parametrize("changes", MIXTURES, ids=str)
@pytest.mark.parametrize("method", caches.UNGATED)
def test_looking_on_changes_nothing(method, changes):
    """Logits bit for bit, and every slot, budget and figure; recorded, watched or neither."""
    model = models.tiny("llama-mha")
    config = config_of(method, **changes)
    caches = [
        ra.ReasonAllocCache(model, config, record=record, observers=[Watcher()] if watched else [])
        for record in (False, True)
        for watched in (False, True)
    ]
    plain, *others = [feed(cache, rows=2, padded=True) for cache in caches]
    for cache, logits in zip(caches[1:], others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, logits, strict=True))
        assert held(cache) == held(caches[0])
        own, other = cache.stats(), caches[0].stats()
        for name in ("slots", "budgets", "evicted", "routings", "lost_mass", "bytes", "peak_bytes"):
            assert own[name] == other[name], name


@pytest.mark.filterwarnings("ignore:h2o keeps")
@pytest.mark.parametrize("method", ["rkv", "h2o"])
@pytest.mark.parametrize("chunk", [20, 60])
def test_figures_may_be_asked_for_amid_a_pass(method, chunk):
    """Between two passes a look at the cache ends a prompt; a look during a cut must not."""
    model, config, text = models.tiny(), config_of(method, keep_prompt=True), models.prompt(60)

    def run(observers):
        cache = ra.ReasonAllocCache(model, config, observers=observers)
        looked.append(cache)
        passes = [*text.split(chunk, 1), *models.prompt(30, seed=3).split(1, 1)]
        return torch.cat([models.step(model, cache, ids)[:, -1] for ids in passes]), held(cache)

    looked = []
    logits, slots = run([])
    seen, same = run([lambda _: (looked[-1].stats(), looked[-1].positions(0))])
    assert torch.equal(logits, seen) and slots == same


@pytest.mark.parametrize("changes", [{}, *MIXTURES[2:5]], ids=str)
def test_what_an_observer_is_shown(changes):
    """Against what the cache holds before and after, and against the rule by which tokens stay."""
    model, watcher, config = models.tiny(), Watcher(), config_of("rkv", **changes)
    cache = ra.ReasonAllocCache(model, config, observers=[watcher])
    cache.prompt_columns = 0  # so that its cut comes with it
    unwatched = 0
    for i in range(25):
        before = {} if i == 0 else {(x, r): cache.positions(x, r) for x in range(3) for r in (0, 1)}
        models.step(model, cache, models.prompt(50 if i == 0 else 1, rows=2, seed=i))
        seen, cuts = 50 + i, watcher.cuts[unwatched:]
        unwatched = len(watcher.cuts)
        assert len(cuts) in (0, 6)
        for cut in cuts:
            new = list(range(seen - (50 if i == 0 else 1), seen))
            old = [x.tolist() for x in before.get((cut.layer, cut.row), [np.zeros(0, int)] * 2)]
            assert cut.tokens == seen
            assert cut.positions == [[*x, *new] for x in old]
            assert cut.kept == [x.tolist() for x in cache.positions(cut.layer, cut.row)]
            assert cut.budgets == cache.stats()["budgets"][cut.row][cut.layer]
            protect = max(50 if config.keep_prompt else 0, config.sinks or 0)
            for h in range(2):
                assert sorted(cut.kept[h] + cut.evicted[h]) == cut.positions[h]
                assert cut.evicted[h] == sorted(cut.evicted[h]) and len(cut.scores[h]) == len(cut.positions[h]) - 4
                last = sum(p < protect for p in cut.positions[h][:-4])
                keep = min(cut.budgets[h] - 4, len(cut.scores[h]))
                best = oracle.select(cut.scores[h], keep, last)
                assert cut.kept[h] == [cut.positions[h][j] for j in best] + cut.positions[h][-4:]
                assert bool(cut.evicted[h]) == (cut.lost[h] > 0)
    lost = [x for cut in watcher.cuts for x, gone in zip(cut.lost, cut.evicted, strict=True) if gone]
    assert cache.stats()["lost_mass"] == pytest.approx(np.mean(lost), rel=1e-9)
    assert cache.stats()["evicted"] == sum(len(gone) for cut in watcher.cuts for gone in cut.evicted)
    assert len(watcher.cuts) == 6 * cache.stats()["routings"] > 6


def assert_importance(model, cuts):
    """Scores of cuts of the first 50 tokens are SnapKV's importance in float64, while everything is still held."""
    full = ra.ReasonAllocCache(model, ra.Config(method="full", window=4))
    models.step(model, full, models.prompt(50))
    for cut in cuts:
        core = full.ragged[cut.layer].core
        count, raw = core.queries(0)
        queries = np.frombuffer(raw, np.float32).reshape(-1, count, 8).astype(np.float64)
        for h in range(2):
            keys = np.zeros((50, 8), np.float32)
            core.read(0, h, False, keys)
            expected = oracle.importance(queries[2 * h : 2 * h + 2], keys.astype(np.float64), 7)
            np.testing.assert_allclose(cut.scores[h], expected, rtol=1e-4)


def test_scores_are_those_of_the_definition():
    """Of the first cut, where everything is still held, in float64."""
    model, watcher = models.tiny(), Watcher()
    models.step(model, ra.ReasonAllocCache(model, config_of("snapkv"), observers=[watcher]), models.prompt(50))
    assert [cut.layer for cut in watcher.cuts] == [0, 1, 2]
    assert_importance(model, watcher.cuts[:1])  # later layers see what the cut of the first one left


def test_views_cannot_be_written_through():
    def write(cut):
        for array in (*cut.positions, *cut.scores, *cut.kept, cut.budgets, cut.lost):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
        calls.append(cut.row)

    calls, model = [], models.tiny()
    feed(ra.ReasonAllocCache(model, config_of("reasonalloc-route"), observers=[write]), new=0)
    assert len(calls) == 3


def test_rows_that_move():
    """Observers with a memory of rows are told; cuts afterwards carry the new numbers."""
    watcher, functions, model = Watcher(), [], models.tiny()
    cache = ra.ReasonAllocCache(model, config_of("rkv"), observers=[watcher, functions.append])
    feed(cache, rows=2, new=0)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 1, 0]))
    assert watcher.moves == [[1, 0], [0, 0, 1, 1], [3, 1, 0]]
    for i in range(8):
        models.step(model, cache, models.prompt(1, rows=3, seed=i))
    assert [cut.row for cut in watcher.cuts] == [0, 1, 0, 1, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert len(functions) == len(watcher.cuts)
    cache.reset()
    feed(cache, new=0)
    assert len(watcher.cuts) == 18 and watcher.cuts[-1].tokens == 50  # it looks on after a reset too


def test_an_observer_that_fails():
    def fail(cut):
        if cut.layer == 1 and cut.tokens > 50:
            raise KeyError("the disk is full")

    model = models.tiny()
    cache = ra.ReasonAllocCache(model, config_of("rkv"), observers=[fail])
    feed(cache, new=7)
    with pytest.raises(KeyError, match="disk is full"):
        models.step(model, cache, models.prompt(1))
    assert "disk is full" in cache.stats()["closed"]
    assert cache.slots()[0].tolist() == [[24, 24], [32, 32], [31, 31]]  # the layer that was looked at is as it was
    assert_closed(cache, model, "disk is full")


def test_a_cut_that_fails_in_python_changes_nothing_of_its_layer(register):
    """All rows are scored before one is cut."""

    @register("falters")
    @dataclass(frozen=True)
    class Falters(ra.Scorer):
        def score(self, view):
            if view.row == 1 and view.tokens > 50:
                raise ZeroDivisionError("in row 1")
            return view.positions

    model = models.tiny()
    cache = ra.ReasonAllocCache(model, config_of("rkv", scorer="falters"))
    feed(cache, rows=2, new=7)
    with pytest.raises(ZeroDivisionError, match="in row 1"):
        models.step(model, cache, models.prompt(1, rows=2))
    assert [len(p) for r in (0, 1) for p in cache.positions(0, r)] == [32] * 4


def test_a_policy_put_together_by_hand():
    """Parts that no config names: layers and a schedule of one's own."""

    @dataclass(frozen=True)
    class Twice(ra.policy.schedule.Schedule):
        def steps_left(self, rows, length, since, tokens):
            """Cuts after 50 and after 60 tokens, then never."""
            left = [moment - length - tokens for moment in (50, 60) if moment >= length + tokens]
            return left[0] if left else -1

    @dataclass(frozen=True)
    class Falling(UniformLayers):
        def totals(self, claims, total, view):
            return [total - 40, 20, 20]

    config, watcher, model = config_of("snapkv", window=6), Watcher(), models.tiny()  # whose window does not count
    policy = replace(config.policy(), schedule=Twice(interval=8, window=4), layers=Falling())
    cache = ra.ReasonAllocCache(model, config, policy=policy, observers=[watcher])
    feed(cache, new=30)
    assert [cut.tokens for cut in watcher.cuts] == [50, 50, 60, 60, 60]  # 104 slots hold the prompt of layer 0
    assert cache.slots()[0].sum(1).tolist() == [104 + 2 * 20, 20 + 2 * 20, 20 + 2 * 20]


def test_a_schedule_of_ones_own_goes_back_with_a_crop():
    """One that says what the plain one says is cut where that is, tokens taken back and rows moved included."""

    @dataclass(frozen=True)
    class Same(ra.policy.schedule.Schedule):
        def steps_left(self, rows, length, since, tokens):
            lengths.append(length)
            return super().steps_left(rows, length, since, tokens)

    config, model, lengths, found = config_of("rkv"), models.tiny(), [], []
    for schedule in (config.policy().schedule, Same(interval=8, window=4)):
        watcher = Watcher()
        cache = ra.ReasonAllocCache(
            model, config, policy=replace(config.policy(), schedule=schedule), observers=[watcher]
        )
        feed(cache, new=5, rows=2)
        cache.crop(-3)
        cache.batch_repeat_interleave(2)
        for i in range(15):
            models.step(model, cache, models.prompt(1, rows=4, seed=i))
        found.append((sorted((cut.tokens, cut.layer, cut.row) for cut in watcher.cuts), held(cache)))
    assert found[0] == found[1]
    assert sorted({tokens for tokens, *_ in found[0][0]}) == [50, 58, 66]
    assert lengths == [0, *range(50, 55), *range(52, 67)]


def test_an_observer_does_not_keep_its_cache():
    model, watcher = models.tiny(), Watcher()
    cache = ra.ReasonAllocCache(model, config_of("rkv"), observers=[watcher])
    feed(cache, new=0)
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None and watcher.cuts
