"""Caches with recall: evicted tokens are scored again at each cut and can win their slots back."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import models
import numpy as np
import pytest
import torch
from caches import SETTINGS, cache_of, contents

import reasonalloc as ra
from reasonalloc.hf import saved_file
from reasonalloc.lab.evaluate.cells import Cell, cell_name
from reasonalloc.policy.cold import Cold
from reasonalloc.policy.scorers import Scorer

STEPS = 60


def run(model, cache, prompt=30, steps=STEPS, rows=1, seed=1):
    """Logits of a prompt and of random tokens after it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, models.VOCAB, (rows, prompt + steps), generator=generator)
    out = [models.step(model, cache, ids[:, :prompt])[:, -1:]]
    out += [models.step(model, cache, ids[:, i : i + 1]) for i in range(prompt, prompt + steps)]
    return torch.cat(out, 1)


def cold_of(cache, row=0):
    """Cold positions by layer and head."""
    return {
        (x.index, h): np.frombuffer(x.core.cold_read(row, h)[0], np.int32).tolist()
        for x in cache.ragged
        for h in range(x.heads)
    }


METHODS = [
    "rkv", "reasonalloc", "snapkv", "adakv", "pyramidkv", "streaming", "random", "h2o", "raas", "dynamickv", "spans",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_token_is_hot_or_cold(method):
    model = models.tiny()
    cache = cache_of(model, method=method, recall=True, interval=8)
    run(model, cache)
    figures = cache.stats()
    n = cache.get_seq_length()
    for (layer, head), cold in cold_of(cache).items():
        hot = cache.positions(layer)[head].tolist()
        assert sorted([*hot, *cold]) == list(range(n))
    assert np.array(figures["cold_slots"]).sum() + np.array(figures["slots"]).sum() == n * 3 * 2
    assert figures["evicted"] - figures["recalls"] == np.array(figures["cold_slots"]).sum()
    assert figures["cold_bytes"] > 0
    if method in ("rkv", "snapkv", "adakv"):
        assert figures["recalls"] > 0
    if method == "streaming":
        assert figures["recalls"] == 0


@pytest.mark.parametrize("method", ["rkv", "reasonalloc", "h2o"])
def test_no_cold_slots_are_no_recall(method):
    model = models.tiny()
    one, other = cache_of(model, method=method), cache_of(model, method=method, recall=True, cold_slots=0)
    assert torch.equal(run(model, one), run(model, other))
    assert contents(one) == contents(other)
    mine, its = one.stats(), other.stats()
    assert mine["lost_mass"] == pytest.approx(its["lost_mass"], abs=1e-6)
    for name in ("bytes", "peak_bytes", "mean_bytes", "evicted", "budgets", "routings"):
        assert mine[name] == its[name]
    assert its["recalls"] == its["cold_bytes"] == 0 == mine["cold_bytes"] and mine["cold_slots"] == []


def test_hot_bytes_are_those_without_recall_and_the_peak_says_what_scoring_takes():
    model = models.tiny()
    one, other = cache_of(model), cache_of(model, recall=True)
    run(model, one)
    run(model, other)
    mine, its = one.stats(), other.stats()
    assert (its["bytes"], its["mean_bytes"], its["slots"]) == (mine["bytes"], mine["mean_bytes"], mine["slots"])
    page = other.pool.core.page_bytes
    assert its["peak_bytes"] > mine["peak_bytes"] + (90 // 16 - 3) * 2 * page
    cold, d, tokens = int(np.array(its["cold_slots"]).sum()), other.ragged[0].head_dim, 6 * 90
    least = cold * (2 * d * 4 + 4) + tokens * (4 + 3 * 4)  # keys, values, positions; what is known of similar keys
    assert least <= its["cold_bytes"] <= least + 6 * (8 * d + 256)
    small = cache_of(model, recall=True, cold_slots=10, cold_format="int8")
    run(model, small)
    assert np.array(small.stats()["cold_slots"]).max() == np.array(small.stats()["cold_slots"]).min() == 10
    assert small.stats()["cold_bytes"] < its["cold_bytes"] / 10


@pytest.mark.parametrize("cold_format", ["same", "int8"])
def test_rows_alone_are_rows_in_a_batch(cold_format):
    """With padding on the left."""
    model, options = models.tiny(), {"recall": True, "cold_format": cold_format, "cold_slots": 40}
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, models.VOCAB, (2, 90), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    both = cache_of(model, **options)
    for begin, end in [(0, 40), *((i, i + 1) for i in range(40, 90))]:
        models.step(model, both, ids[:, begin:end], mask[:, :end])
    for row, first in enumerate((0, 11)):
        alone = cache_of(model, **options)
        for begin, end in [(first, 40), *((i, i + 1) for i in range(40, 90))]:
            models.step(model, alone, ids[row : row + 1, begin:end])
        assert cold_of(both, row) == cold_of(alone)
        for layer in range(3):
            assert [x.tolist() for x in both.positions(layer, row)] == [x.tolist() for x in alone.positions(layer)]


def test_forks_copies_and_files_go_on(tmp_path):
    model = models.tiny()
    for cold_format in ("same", "int8"):
        cache = cache_of(model, recall=True, cold_format=cold_format, cold_slots=30)
        run(model, cache, steps=45)
        cache.save(tmp_path / "cache")
        twin, loaded = copy.deepcopy(cache), ra.ReasonAllocCache.load(tmp_path / "cache", model)
        forked = copy.deepcopy(cache)
        forked.batch_repeat_interleave(2)
        forked.reorder_cache(torch.tensor([1, 0]))
        assert loaded.stats()["recalls"] == cache.stats()["recalls"] > 0
        assert loaded.stats()["cold_slots"] == cache.stats()["cold_slots"]
        ids = torch.randint(1, models.VOCAB, (1, 20), generator=torch.Generator().manual_seed(8))
        outs = []
        for each in (cache, twin, loaded, forked):
            rows = 2 if each is forked else 1
            outs.append([models.step(model, each, ids[:, i : i + 1].repeat(rows, 1))[:1] for i in range(20)])
        for x, *others in zip(*outs, strict=True):
            for y in others:
                assert torch.allclose(x, y, atol=1e-5)
        states = [cold_of(each) for each in (cache, twin, loaded, forked)]
        assert all(x == states[0] for x in states) and cold_of(forked, 1) == states[0]
        before = cold_of(cache)
        cache.crop(-1)
        assert cold_of(cache) == before
        cache.reset()
        assert cache.stats()["cold_bytes"] == 0


def test_a_damaged_file_is_refused(tmp_path):
    model = models.tiny()
    cache = cache_of(model, recall=True)
    run(model, cache)
    cache.save(tmp_path / "cache")
    header, arrays = saved_file.read(tmp_path / "cache")
    name = "layer.1.cold."
    hot = arrays["layer.1.positions"]
    changes = {
        "positions": hot[: len(arrays[name + "positions"])].repeat(9)[: len(arrays[name + "positions"])].clone(),
        "records": arrays[name + "records"][:-1].clone(),
        "slots": -arrays[name + "slots"],
    }
    nan = arrays[name + "records"].clone()
    nan[:4] = torch.tensor([0, 0, 0xC0, 0x7F], dtype=torch.uint8)
    for key, value in [*changes.items(), ("records", nan)]:
        saved_file.write(tmp_path / "bad", header, {**arrays, name + key: value})
        with pytest.raises(ValueError, match="is not a saved cache of this model"):
            ra.ReasonAllocCache.load(tmp_path / "bad", model)


def test_observers_see_what_was_cold():
    model, seen = models.tiny(), []

    def watch(cut):
        for h, hot in enumerate(cut.positions):
            cold, kept = set(cut.cold[h].tolist()), set(cut.kept[h].tolist())
            assert cold <= set(hot.tolist()) and len(cut.scores[h]) == len(hot) - SETTINGS["window"]
            assert set(cut.recalled[h].tolist()) == cold & kept
            assert set(cut.evicted[h].tolist()) == set(hot.tolist()) - cold - kept
            seen.append((len(cut.recalled[h]), len(cut.evicted[h])))

    config = ra.Config(method="rkv", recall=True, **SETTINGS)
    cache, plain = ra.ReasonAllocCache(model, config, observers=[watch]), ra.ReasonAllocCache(model, config)
    assert torch.equal(run(model, cache), run(model, plain))
    figures = cache.stats()
    assert figures["recalls"] == sum(x for x, _ in seen) > 0
    assert figures["evicted"] == sum(x for _, x in seen) == plain.stats()["evicted"]
    assert cold_of(cache) == cold_of(plain)


@dataclass(frozen=True)
class ByNorm(Scorer):
    """Keys of small norm stay."""

    def score(self, view):
        return -view.keys.norm(dim=-1)


def test_parts_in_python_and_smoothing_see_all_tokens():
    model = models.tiny()
    policy = replace(ra.Config(method="rkv", recall=True, **SETTINGS).policy(), scorer=ByNorm())
    cache = ra.ReasonAllocCache(model, ra.Config(method="rkv", **SETTINGS), policy=policy)
    whole = cache_of(model, method="full", budget=None, interval=None, window=4)
    run(model, cache, steps=58)  # the newest cut is after 30 + 56
    run(model, whole, steps=56)
    layer = cache.ragged[0]
    for head in range(2):  # of the first layer, whose keys do not depend on what was evicted
        keys = np.empty((86, layer.head_dim), np.float32)
        whole.ragged[0].core.read(0, head, False, keys)
        order = np.argsort(np.linalg.norm(keys[:82], axis=1), kind="stable")
        assert sorted(order[:20].tolist()) == cache.positions(0)[head][:20].tolist()
    smooth = cache_of(model, method="rkv", smoothing=0.5, recall=True)
    run(model, smooth)
    assert smooth.stats()["recalls"] > 0


def test_replayed_budgets_with_recall():
    model = models.tiny()
    recorded = ra.ReasonAllocCache(model, ra.Config(method="reasonalloc", **SETTINGS), record=True)
    ids = torch.randint(1, models.VOCAB, (1, 80), generator=torch.Generator().manual_seed(4))
    for begin, end in [(0, 30), *((i, i + 1) for i in range(30, 80))]:
        models.step(model, recorded, ids[:, begin:end])
    trace = recorded.trace(ids[0])
    replayed = ra.replay(trace, model, ra.Config(method="rkv", recall=True, **SETTINGS))
    list(replayed.log_probs())
    assert replayed.stats()["budgets"] == [trace.budgets[-1].tolist()] and replayed.stats()["recalls"] > 0
    with pytest.raises(ValueError, match="with recall tokens come back"):
        ra.replay(trace, model, ra.Config(method="rkv", recall=True, **SETTINGS), record=True)


def test_errors_at_a_cut_leave_tokens_where_they_were():
    model = models.tiny()

    def fail(cut):
        if cut.tokens > 60:
            raise RuntimeError("stop")

    cache = ra.ReasonAllocCache(model, ra.Config(method="rkv", recall=True, **SETTINGS), observers=[fail])
    with pytest.raises(RuntimeError, match="stop"):
        run(model, cache)
    n = cache.ragged[0].core.tokens(0)
    for (layer, head), cold in cold_of(cache).items():
        hot = np.frombuffer(cache.ragged[layer].core.positions(0, head), np.int32).tolist()
        assert sorted([*hot, *cold]) == list(range(cache.ragged[layer].core.tokens(0))) and len(hot) < n


def test_refusals():
    model = models.tiny()
    good = {"method": "rkv", "budget": 24, "window": 4}
    for options, match in [
        ({"recall": 1}, "recall must be True or False"),
        ({"recall": True, "cold_slots": -1}, "cold_slots must lie between 0"),
        ({"recall": True, "cold_format": "int4"}, "cold_format must be one of 'same', 'int8'"),
        ({"cold_slots": 5}, "recall is False"),
        ({"cold_format": "int8"}, "recall is False"),
        ({"recall": True, "device": "model"}, "device must be None or"),
        ({"recall": True, "method": "full", "budget": None}, "keeps every token"),
    ]:
        with pytest.raises(ValueError, match=match):
            ra.Config(**{**good, **options})
    with pytest.raises(ValueError, match="record=False"):
        ra.ReasonAllocCache(model, ra.Config(**good, recall=True), record=True)
    assert Cold().limit == -1 and Cold(7).limit == 7


def test_recall_lies_in_host_memory(monkeypatch):
    """Wherever other caches would."""
    monkeypatch.setenv("REASONALLOC_BACKEND", "cuda-emulated")
    model = models.tiny()
    cache = cache_of(model, recall=True)
    run(model, cache, steps=20)
    assert cache.stats()["backends"] == ["cpu on cpu"]


def test_cells_with_recall_are_others():
    plain, other, small = (
        ra.Config(method="rkv", budget=64, **options)
        for options in ({}, {"recall": True}, {"recall": True, "cold_slots": 9})
    )
    assert len({Cell("", x).hash for x in (plain, other, small)}) == 3
    assert [cell_name(x) for x in (plain, other)] == ["rkv 64", "rkv 64 recall"]
