"""Cuts in two phases: DynamicKV's layers, parts that see all layers' scores, and what goes wrong."""

import copy
from dataclasses import dataclass

import models
import numpy as np
import oracle
import pytest
import torch
from caches import UNGATED, assert_closed, contents
from test_methods import config_of
from test_observers import Watcher, assert_importance, feed, held
from test_padding import assert_rows_are_alone

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.policy.layers_by_scores import Dynamic, LayersByScores
from reasonalloc.store import backends


def scores_of(watcher, tokens):
    """[L][H] scores and [L] layers' cuts at a moment, of the one row."""
    cuts = sorted((cut for cut in watcher.cuts if cut.tokens == tokens), key=lambda cut: cut.layer)
    return [cut.scores for cut in cuts], cuts


@pytest.mark.parametrize("changes", [{}, {"smoothing": 0.5}, {"heads": "route"}, {"options": {"r_max": 1.1}}], ids=str)
def test_totals_are_the_oracles_of_what_observers_see(changes):
    """At every cut of which all layers are shown; the others are those where a layer kept all that it had."""
    watcher, model, config = Watcher(), models.tiny("llama-mha"), config_of("dynamickv", **changes)
    cache = ra.ReasonAllocCache(model, config, observers=[watcher])
    feed(cache, new=40)
    moments, heads = sorted({cut.tokens for cut in watcher.cuts}), 4
    whole, uneven = 0, False
    for tokens in moments:
        scores, cuts = scores_of(watcher, tokens)
        if len(cuts) < 3:
            continue
        whole += 1
        totals = oracle.layer_totals(scores, 24 * heads * 3, 4, changes.get("options", {}).get("r_max", 10.0))
        assert [sum(cut.budgets) for cut in cuts] == totals.tolist()
        assert sum(len(k) for cut in cuts for k in cut.kept) == 24 * heads * 3
        uneven |= len(set(totals.tolist())) > 1
    assert whole >= 2 and uneven
    assert np.array(cache.stats()["budgets"]).sum() == 24 * heads * 3


def test_scores_are_of_layers_before_any_is_cut():
    """In float64, of all layers: in one phase the later ones would see what the first cut left."""
    model, watcher = models.tiny(), Watcher()
    cache = ra.ReasonAllocCache(model, config_of("dynamickv"), observers=[watcher])
    cache.prompt_columns = 0
    models.step(model, cache, models.prompt(50))
    assert [cut.layer for cut in watcher.cuts] == [0, 1, 2]
    assert_importance(model, watcher.cuts)


def test_the_c_allocator_is_the_python_one(register):
    """Also with smoothing and rows of different lengths; what is kept is the same, to the slot."""

    @register("dynamic-in-python")
    @dataclass(frozen=True)
    class InPython(Dynamic):
        def shares(self, layers, total, view):
            assert [x.order for x in layers] == [0, 1, 2]
            lengths = [(len(p), len(s)) for x in layers for p, s in zip(x.positions, x.scores, strict=True)]
            assert all(slots - older == view.window for slots, older in lengths)
            return oracle.layer_totals([x.scores for x in layers], total, view.window, self.r_max)

    model = models.tiny()
    for changes in ({}, {"smoothing": 0.5}, {"ratio": 0.4, "budget": None}):
        caches = [
            ra.ReasonAllocCache(model, config_of("dynamickv", layers=name, **changes))
            for name in ("dynamic", "dynamic-in-python")
        ]
        given = [feed(cache, rows=2, padded=True) for cache in caches]
        assert all(torch.equal(a, b) for a, b in zip(*given, strict=True))
        assert held(caches[0]) == held(caches[1])
        assert caches[0].stats()["budgets"] == caches[1].stats()["budgets"]


def test_a_prompt_in_chunks_is_cut_at_its_end_alone_and_in_a_batch():
    model, prompts = models.tiny(), [models.prompt(n, seed=n)[0] for n in (60, 43)]
    ids, mask = models.left_padded(prompts)
    batch, alone = [ra.ReasonAllocCache(model, config_of("dynamickv")) for _ in range(2)], []
    for begin in range(0, 60, 20):
        models.step(model, batch[0], ids[:, begin : begin + 20], mask[:, : begin + 20])
        assert not batch[0].cutter.evicted
    models.step(model, batch[1], ids, mask)
    for cache in batch:
        models.step(model, cache, models.prompt(1, rows=2), torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1))
    assert held(batch[0]) == held(batch[1])
    for row, prompt in enumerate(prompts):
        alone.append(ra.ReasonAllocCache(model, config_of("dynamickv")))
        models.step(model, alone[row], prompt[None])
        models.step(model, alone[row], models.prompt(1, rows=2)[row : row + 1])
        own = [p.tolist() for layer in range(3) for p in batch[0].positions(layer, row)]
        assert own == [p.tolist() for layer in range(3) for p in alone[row].positions(layer)]


@pytest.mark.parametrize("changes", [{"smoothing": 0.5}, {"keep_prompt": True}, {"heads": "pooled"}], ids=str)
def test_rows_are_alone(changes):
    config = ra.Config(method="dynamickv", budget=24, interval=8, window=4, **changes)
    assert assert_rows_are_alone(models.tiny(), config)


def test_the_prompt_goes_last():
    """What every head of every layer still has of it is not shared out, and no layer loses it to another."""
    model = models.tiny()
    cache = ra.ReasonAllocCache(model, config_of("dynamickv", keep_prompt=True))
    feed(cache, prompt=15, new=40)
    for layer in range(3):
        for positions in cache.positions(layer):
            assert positions[:15].tolist() == list(range(15))


# ---- Scores across layers --------------------------------------------------------------------------------------------


@pytest.fixture
def mean_over_layers(register):
    """As TriAttention's per_head form shares sets: a KV head has one in all layers, by its mean score."""

    @register("mean-over-layers")
    @dataclass(frozen=True)
    class Mean(ra.Scorer):
        def score(self, view):
            return (view.queries[:, -1] @ view.keys.T).amax(0)

        def across(self, layers, view):
            heads = [np.mean([x.scores[h] for x in layers], 0) for h in range(view.heads)]
            assert all(len({x.positions[h].tobytes() for x in layers}) == 1 for h in range(view.heads))
            return [heads] * len(layers)

    return "mean-over-layers"


@pytest.mark.parametrize("changes", [{}, {"smoothing": 0.5}, {"keep_prompt": True}], ids=str)
def test_a_scorer_that_sees_all_layers(mean_over_layers, changes):
    model, watcher = models.tiny("llama-mha"), Watcher()
    cache = ra.ReasonAllocCache(model, config_of("rkv", scorer=mean_over_layers, **changes), observers=[watcher])
    feed(cache, rows=2, padded=True, new=30)
    for row in (0, 1):
        kept = [[p.tolist() for p in cache.positions(layer, row)] for layer in range(3)]
        assert kept[0] == kept[1] == kept[2]
        assert len({tuple(head) for head in kept[0]}) > 1
    assert cache.stats()["evicted"]
    for cut in watcher.cuts:  # what replaced them is what observers see
        other = next(x for x in watcher.cuts if (x.row, x.tokens, x.layer) == (cut.row, cut.tokens, 0))
        assert all(np.array_equal(a, b) for a, b in zip(cut.scores, other.scores, strict=True))


def test_it_may_build_on_scores_in_c(register):
    """Turned round, layer by layer; and with DynamicKV's totals over them."""

    @register("turned")
    @dataclass(frozen=True)
    class Turned(ra.policy.scorers.Importance):
        def across(self, layers, view):
            return [[-s for s in x.scores] for x in layers]

    model, found = models.tiny(), []
    for scorer in ("importance", "turned"):
        watcher = Watcher()
        cache = ra.ReasonAllocCache(model, config_of("dynamickv", scorer=scorer), observers=[watcher])
        feed(cache, new=0)
        cache.positions(0)
        found.append(watcher.cuts)
    for a, b in zip(*found, strict=True):
        assert all(np.array_equal(x, -y) for x, y in zip(a.scores, b.scores, strict=True))
    assert [sum(cut.budgets) for cut in found[1]] == oracle.layer_totals([c.scores for c in found[1]], 144, 4).tolist()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda layers: [x.scores for x in layers][:2], "be of 3 layers, got 2"),
        (lambda layers: [[s[1:] for s in x.scores] for x in layers], "be finite and.* shapes"),
        (lambda layers: [[s * np.nan for s in x.scores] for x in layers], "be finite and.* shapes"),
    ],
)
def test_what_a_scorer_across_layers_must_not_give(register, result, message):
    @register("wrong")
    @dataclass(frozen=True)
    class Wrong(ra.policy.scorers.Importance):
        def across(self, layers, view):
            return result(layers) if view.tokens > 50 else [x.scores for x in layers]

    model = models.tiny()
    cache = ra.ReasonAllocCache(model, config_of("snapkv", scorer="wrong"))
    feed(cache, new=7)
    before = contents(cache)[-2:]
    with pytest.raises(ValueError, match=f"scorer 'wrong' across layers must {message}"):
        models.step(model, cache, models.prompt(1))
    assert before[1] == [[[n - 1 for n in head] for head in layer] for layer in cache.stats()["slots"]]


# ---- Errors: all layers or none --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["score", "shares", "observer"])
def test_a_cut_that_fails_leaves_every_layer(register, where):
    """Whatever fails, and whichever layer: slots, positions, pages, and what smoothing remembers."""

    def fail(part, layer, tokens):
        if part == where and layer == 2 and tokens > 50:
            raise ZeroDivisionError("it fails")

    @register("fails")
    @dataclass(frozen=True)
    class Fails(ra.Scorer):
        def score(self, view):
            fail("score", view.layer, view.tokens)
            return view.positions % 7

    @register("layers-fail")
    @dataclass(frozen=True)
    class LayersFail(LayersByScores):
        def shares(self, layers, total, view):
            fail("shares", 2, view.tokens)
            return [total - 2 * 40, 40, 40]

    model = models.tiny()
    config = config_of("dynamickv", scorer="fails", layers="layers-fail", smoothing=0.5)
    cache = ra.ReasonAllocCache(model, config, observers=[lambda cut: fail("observer", cut.layer, cut.tokens)])
    feed(cache, new=7, rows=2)
    past = cache.cutter.smoother.arrays()
    before = [[p.tolist() for p in cache.positions(layer, r)] for layer in range(3) for r in (0, 1)]
    budgets, totals = cache.stats()["budgets"], cache.cutter.totals_now.copy()
    slots = cache.slots().copy()
    with pytest.raises(ZeroDivisionError, match="it fails"):
        models.step(model, cache, models.prompt(1, rows=2))
    assert (cache.slots() == slots + 1).all()
    now = [[p.tolist()[:-1] for p in cache.positions(layer, r)] for layer in range(3) for r in (0, 1)]
    assert now == before
    assert cache.stats()["budgets"] == budgets
    assert (cache.cutter.totals_now == totals).all()
    assert all(np.array_equal(x, past[name]) for name, x in cache.cutter.smoother.arrays().items())
    assert_closed(cache, model, "it fails")


@pytest.mark.parametrize("free", [0, 9, 20])  # pages; a layer needs 8
def test_eviction_that_lacks_pages_evicts_nowhere(free):
    """Where pages are shared every layer asks for its own first."""
    model = models.tiny()
    cache = ra.ReasonAllocCache(model, config_of("dynamickv", budget=60))  # holds the prompt whole
    models.step(model, cache, models.prompt(50, rows=2))
    cache.slots()
    other = copy.deepcopy(cache)
    cache.cutter.budgets.fixed, cache.cutter.budgets._newest = 24, ([], b"", np.zeros((0, 3), np.int64))
    pool, grow, asked = cache.pool, cache.pool.grow, []
    pool.trim(0)

    def refuse(pages):
        asked.append(pages)
        raise MemoryError("no page")

    taken = _core.Layer(pool.core, 1, 1, 1, 4, None)
    zeros = [torch.zeros(1, 1, (pool.core.info()[2] - free) * 16, 8)] * 3
    assert not taken.step(*zeros, None, 1.0)
    pool.grow = refuse
    before = [[p.tolist() for p in cache.positions(layer, r)] for layer in range(3) for r in (0, 1)]
    with pytest.raises(MemoryError, match="no page"):
        cache.cutter.cut(cache.ragged, np.ones(2, np.bool_))
    assert asked
    now = [[p.tolist() for p in cache.positions(layer, r)] for layer in range(3) for r in (0, 1)]
    assert now == before
    pool.grow = grow
    cache.cutter.cut(cache.ragged, np.ones(2, np.bool_))  # and it goes on where there are pages
    assert cache.slots().sum() == 24 * 6 * 2
    assert other.slots().sum() == 50 * 6 * 2


def test_what_an_allocator_must_not_give(register):
    @register("too-much")
    @dataclass(frozen=True)
    class TooMuch(LayersByScores):
        def shares(self, layers, total, view):
            return [total, 1, 8]

    model = models.tiny()
    cache = ra.ReasonAllocCache(model, config_of("dynamickv", layers="too-much"))
    cache.prompt_columns = 0
    with pytest.raises(ValueError, match=r"layer totals of layers 'too-much' must be 3 whole numbers of at least 8"):
        models.step(model, cache, models.prompt(50))
    with pytest.raises(ValueError, match="has no function 'shares'"):

        @register("nothing")
        @dataclass(frozen=True)
        class Nothing(LayersByScores):
            pass


# ---- Everything else sees an ordinary cut ----------------------------------------------------------------------------


def test_traces_and_replay():
    model, ids = models.tiny(), models.prompt(90)
    cache = ra.ReasonAllocCache(model, config_of("dynamickv"), record=True)
    models.step(model, cache, ids[:, :50])
    for t in range(50, 90):
        models.step(model, cache, ids[:, t : t + 1])
    trace = cache.trace(ids[0])
    assert len(trace.cuts) == cache.stats()["routings"]
    for force in ("budgets", "evictions"):
        again = ra.replay(trace, model, force=force)
        list(again.log_probs())
        expected = ra.ReasonAllocCache(model, config_of("dynamickv"))
        models.step(model, expected, ids[:, :50])
        for t in range(50, 89):
            models.step(model, expected, ids[:, t : t + 1])
        assert held(again) == held(expected)


def test_files_copies_and_rows_that_move(tmp_path):
    model, config = models.tiny(), config_of("dynamickv", smoothing=0.5)
    cache = ra.ReasonAllocCache(model, config)
    feed(cache, rows=2, padded=True, new=13)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.save(tmp_path / "cache")
    others = [ra.ReasonAllocCache.load(tmp_path / "cache", model), copy.deepcopy(cache)]
    for i in range(20):
        for each in (cache, *others):
            models.step(model, each, models.prompt(1, rows=2, seed=i))
    assert held(cache) == held(others[0]) == held(others[1])
    assert cache.stats()["budgets"] == others[0].stats()["budgets"]


def test_today_s_methods_have_one_phase():
    two = {name for name in UNGATED if name != "full" and ra.Config(method=name, budget=64).policy().two_phases}
    assert two == {"dynamickv"}
    assert not ra.Config(method="full", layers="dynamic").policy().two_phases


@pytest.mark.parametrize("changes", [{}, {"smoothing": 0.5, "heads": "route"}], ids=str)
def test_on_a_device_it_is_the_same(monkeypatch, changes):
    pytest.importorskip("reasonalloc._cuda_emulated")
    model, found = models.tiny(), []
    for backend in ("", "cuda-emulated"):
        monkeypatch.setenv(backends.VARIABLE, backend)
        cache = ra.ReasonAllocCache(model, config_of("dynamickv", **changes))
        feed(cache, rows=2, padded=True, new=20)
        figures = cache.stats()
        found.append((held(cache), figures["budgets"], figures["evicted"], figures["routings"]))
    assert "cuda" in figures["backends"][0]
    assert found[0] == found[1]
