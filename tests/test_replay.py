"""Traces forced again, and refused where they do not belong."""

from __future__ import annotations

from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from traces import feed, recorded, text

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint
from reasonalloc.lab.evaluate import forced_log_probs
from reasonalloc.lab.evaluate.separate import separate
from reasonalloc.trace import Trace


@pytest.mark.parametrize("method", ["reasonalloc", "adakv", "random", "streaming", "full"])
def test_the_very_evictions(method):
    trace, cache = recorded(method)
    again = ra.replay(trace, models.tiny(), force="evictions", ids=text(), record=True)
    expected = torch.log_softmax(feed(ra.ReasonAllocCache(models.tiny(), cache.config), text()), -1)
    torch.testing.assert_close(torch.stack(list(again.log_probs())), expected[:-1])
    models.step(models.tiny(), again, text()[None, -1:])
    for layer in range(3):
        for mine, expected in zip(again.positions(layer), cache.positions(layer), strict=True):
            assert np.array_equal(mine, expected)
    own = again.trace(text())
    for name in ("cuts", "gone", "budgets"):
        assert np.array_equal(getattr(own, name), getattr(trace, name)), name
    np.testing.assert_allclose(own.lost, trace.lost, atol=1e-5)


def test_budgets_with_the_trace_s_own_scores_give_the_trace():
    trace, _ = recorded()
    again = ra.replay(trace, models.tiny(), record=True)
    feed(again, text())
    own = again.trace(text())
    for name in ("cuts", "gone", "budgets", "quantiles", "lost"):
        assert np.array_equal(getattr(own, name), getattr(trace, name), equal_nan=name in ("quantiles", "lost")), name


@pytest.mark.parametrize("name", ["snapkv", "random", "rkv"])
def test_budgets_with_other_scores(name):
    trace, _ = recorded("reasonalloc")
    again = ra.replay(trace, models.tiny(), ra.Config(method=name, max_bytes="1MiB", window=4), record=True)
    feed(again, text())
    own = again.trace(text())
    assert np.array_equal(own.cuts, trace.cuts) and np.array_equal(own.budgets, trace.budgets)
    assert np.array_equal(own.slots(), trace.slots())
    assert np.array_equal(own.gone, trace.gone) == (name == "rkv")  # the trace's scorer, other allocators


def test_replay_of_a_layer_that_is_not_cut():
    profile = ra.WaveProfile((400.0, 20.0, 20.0), (0, 1, 2), fingerprint(models.tiny()))
    trace, _ = recorded(profile=profile, gamma=1.0, tokens=90)
    for force in ("budgets", "evictions"):
        again = ra.replay(trace, models.tiny(), force=force, record=True)
        feed(again, text(90))
        assert np.array_equal(again.trace(text(90)).gone, trace.gone)
        assert np.array(again.stats()["budgets"]).min() > 0


def test_a_loaded_trace_replays(tmp_path):
    trace, _ = recorded()
    trace.save(tmp_path / "a.trace")
    loaded = Trace.load(tmp_path / "a.trace")
    one, two = (torch.stack(list(ra.replay(x, models.tiny()).log_probs())) for x in (trace, loaded))
    assert torch.equal(one, two)


def test_replay_by_evaluate():
    trace, _ = recorded()
    cache = ra.replay(trace, models.tiny())
    rows = list(forced_log_probs(models.tiny(), cache, trace.prompt_ids(), trace.chain_ids()))
    again = list(ra.replay(trace, models.tiny()).log_probs())
    assert len(rows) == 60 and torch.equal(torch.stack(rows), torch.stack(again))


def test_separation():
    trace, cache = recorded()
    same = separate(trace, models.tiny(), cache.config)
    assert same.trace == same.scores == same.own > 0
    other = separate(trace, models.tiny(), ra.Config(method="random", budget=24, window=4, interval=8))
    assert other.trace == same.trace and other.scores != other.trace and other.own != other.scores
    figures = other.as_json()
    assert figures["by_scores"] + figures["by_budgets"] == pytest.approx(other.own - other.trace)
    whole = separate(recorded("full")[0], models.tiny(), ra.Config(method="rkv", budget=4096, window=4, interval=8))
    assert whole.trace == pytest.approx(0, abs=1e-6) and whole.own == pytest.approx(0, abs=1e-6)


def test_replay_where_it_does_not_belong():
    trace, cache = recorded()
    model, ids = models.build("llama"), text()
    before = model.config._attn_implementation
    other = ids.clone()
    other[17] += 1 if other[17] < 90 else -1
    bad = [
        (models.build("llama-mqa"), {}, "kv_heads 2 .here 1."),
        (models.build("llama", num_hidden_layers=2), {}, "layers 3 .here 2."),
        (models.build("llama", vocab_size=50), {}, "the model has 50"),
        (model, {"ids": other}, "token 17"),
        (model, {"ids": ids[:-1]}, "100 tokens, got 99"),
        (model, {"force": "scores"}, "budgets, evictions"),
        (model, {"force": "evictions", "config": cache.config}, "leaves nothing"),
        (model, {"config": ra.Config(method="full")}, "keeps every token"),
        (model, {"config": ra.Config(method="rkv", budget=24)}, "window must be the trace's 4, got 8"),
        (model, {"config": replace(cache.config, interval=16)}, "interval must be the trace's 8, got 16"),
    ]
    for wrong, options, complaint in bad:
        with pytest.raises(ValueError, match=complaint):
            ra.replay(trace, wrong, **options)
    assert model.config._attn_implementation == before
    with pytest.raises(ValueError, match="keeps every token"):
        ra.replay(recorded("full")[0], model)


def test_steps_that_do_not_fit_leave_the_cache_usable():
    trace, _ = recorded()
    model, cache, ids = models.tiny(), ra.replay(trace, models.tiny()), text()
    with pytest.raises(ValueError, match="batch of 2"):
        models.step(model, cache, models.prompt(40, rows=2))
    with pytest.raises(ValueError, match="cut after 40 tokens, and this step goes from 0 to 41"):
        models.step(model, cache, ids[None, :41])
    models.step(model, cache, ids[None, :40])
    with pytest.raises(RuntimeError, match="empty"):
        next(cache.log_probs())
    with pytest.raises(ValueError, match="cut after 48 tokens"):
        models.step(model, cache, ids[None, 40:50])
    for i in range(40, 100):
        models.step(model, cache, ids[None, i : i + 1])
    with pytest.raises(ValueError, match="ends after 100 tokens, got 101"):
        models.step(model, cache, ids[None, :1])
    assert cache.stats()["closed"] is None
    cache.reset()
    feed(cache, ids)
    padded = ra.replay(trace, model)
    with pytest.raises(ValueError, match="without padding"):
        models.step(model, padded, ids[None, :40], torch.arange(40)[None] >= 3)
