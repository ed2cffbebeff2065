"""A batch's prompts are stored and cut some rows at a time: what is kept is the same, and few lie whole in pages."""

import models
import numpy as np
import pytest
import torch
from caches import assert_closed, assert_works, cache_of, contents

import reasonalloc as ra
from reasonalloc.hf import forward
from reasonalloc.store.backends import VARIABLE
from reasonalloc.store.pages import PAGE_TOKENS

LENGTHS = (70, 51, 90, 33, 18, 84)
SETTINGS = {"budget": 32, "interval": 8, "window": 4}
# Seeds, statistics of prompts, both forms of head budgets, measured calibrations, tokens that come back, bytes.
CONFIGS = {
    "rkv": {},
    "snapkv-prompt-kept": {"method": "snapkv", "keep_prompt": True},
    "reasonalloc-route": {},
    "adakv": {},
    "h2o": {},
    "lazyeviction": {"options": {"prompt_statistics": "window"}},
    "random": {},
    "vase": {},
    "triattention": {},
    "recall": {"method": "rkv", "recall": True},
    "bytes": {"method": "rkv", "budget": None, "max_bytes": 240_000},
}


@pytest.fixture(params=["cpu", pytest.param("cuda-emulated", marks=pytest.mark.core)])
def backend(request, monkeypatch):
    if request.param == "cuda-emulated":
        pytest.importorskip("reasonalloc._cuda_emulated")
    monkeypatch.setenv(VARIABLE, request.param)


def page_bytes(model):
    return 2 * PAGE_TOKENS * model.config.head_dim * 4


def prompt(model, cache, rows_at_a_time, monkeypatch, lengths=LENGTHS):
    """A first pass of which a layer stores so many rows at a time -> its logits and its mask."""
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in lengths])
    row = model.config.num_key_value_heads * -(-ids.shape[1] // PAGE_TOKENS) * page_bytes(model)
    monkeypatch.setattr(forward, "PROMPT_BYTES", rows_at_a_time * row)
    cache.prompt_columns = 0
    return models.step(model, cache, ids, mask), mask


def run(model, config, rows_at_a_time, monkeypatch):
    """A cache after a prompt and some steps, and the logits of all."""
    cache = ra.ReasonAllocCache(model, config)
    first, mask = prompt(model, cache, rows_at_a_time, monkeypatch)
    logits = [first]
    for token in models.prompt(9, rows=len(LENGTHS), seed=3).T:
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], 1)
        logits.append(models.step(model, cache, token[:, None], mask))
    return cache, torch.cat(logits, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_some_rows_at_a_time_keep_what_all_at_once_keep(name, backend, monkeypatch):
    model = models.tiny()
    changes = {"method": name, **SETTINGS, **CONFIGS[name]}
    if name == "triattention":
        changes["calibration"] = ra.calibrate(model, models.Words(), ["a text of some length, of letters"] * 2)
    config = ra.Config(**{k: v for k, v in changes.items() if v is not None})
    whole, expected = run(model, config, len(LENGTHS), monkeypatch)
    assert whole.stats()["evicted"] > 0
    for most in (1, 4):
        parts, got = run(model, config, most, monkeypatch)
        assert torch.equal(got, expected)
        assert contents(parts) == contents(whole)
        for figure in ("evicted", "recalls", "budgets", "routings"):
            assert parts.stats()[figure] == whole.stats()[figure], figure
        assert parts.stats()["lost_mass"] == pytest.approx(whole.stats()["lost_mass"], rel=1e-12)


def test_few_prompts_lie_whole_in_pages(backend, monkeypatch):
    """The peak is one prompt and what the other rows and layers may keep."""
    model, lengths = models.tiny(), (800,) * 6
    heads, layers = model.config.num_key_value_heads, model.config.num_hidden_layers
    whole, parts = cache_of(model, **SETTINGS), cache_of(model, **SETTINGS)
    prompt(model, whole, len(lengths), monkeypatch, lengths)
    prompt(model, parts, 1, monkeypatch, lengths)
    one = 800 // PAGE_TOKENS * heads * page_bytes(model)
    kept = len(lengths) * layers * heads * (32 // PAGE_TOKENS + 1) * page_bytes(model)
    assert whole.stats()["peak_bytes"] >= len(lengths) * one
    assert parts.stats()["peak_bytes"] <= one + kept
    assert contents(parts) == contents(whole)


def test_rows_whose_prompt_may_go_on_stay_whole(backend, monkeypatch):
    """Without the prompt's length a padded row is not known to be at its end."""
    model = models.tiny()
    one, other = cache_of(model, **SETTINGS), cache_of(model, **SETTINGS)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (90, 60, 90)])
    models.step(model, one, ids, mask)
    monkeypatch.setattr(forward, "PROMPT_BYTES", 1)
    models.step(model, other, ids, mask)
    before = other.pool.bytes
    assert contents(other) == contents(one)  # they are looked at, so their prompts are over
    assert other.pool.bytes < before


def test_observers_see_each_row_once_in_order(monkeypatch):
    model = models.tiny()
    seen = []
    for most in (6, 1):
        views = []
        cache = ra.ReasonAllocCache(
            model, ra.Config(method="rkv", **SETTINGS), record=True, observers=[lambda v, to=views: to.append(v)]
        )
        prompt(model, cache, most, monkeypatch)
        seen.append([(v.layer, v.row, v.tokens, [k.tolist() for k in v.kept]) for v in views])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 3 * 5  # one row is shorter than its budget


@pytest.mark.parametrize("most", [3, 1])
def test_a_value_that_is_not_finite_in_a_later_row(most, monkeypatch):
    """Nothing is stored where all rows are looked at first; else the cache says that it has a part of them."""
    model = models.build("llama")
    cache = cache_of(model, **SETTINGS)
    cache.prompt_columns = 0
    ids = models.prompt(60, rows=3)
    ids[2, 30], ids[:2] = 5, ids[:2].where(ids[:2] != 5, 6)
    row = model.config.num_key_value_heads * 4 * page_bytes(model)
    monkeypatch.setattr(forward, "PROMPT_BYTES", most * row)
    weight = model.model.embed_tokens.weight.data
    good, weight[5] = weight[5].clone(), float("nan")
    with pytest.raises(ValueError, match=r"layer 0: .*NaN or infinity"):
        models.step(model, cache, ids)
    weight[5] = good
    if most == 3:
        assert cache.stats()["closed"] is None and cache.stats()["bytes"] == 0
        assert_works(cache, model)
    else:
        assert_closed(cache, model, "NaN or infinity")


def test_a_row_at_a_time_is_what_it_is_alone(backend, monkeypatch):
    model = models.tiny()
    batch = cache_of(model, **SETTINGS)
    prompt(model, batch, 1, monkeypatch)
    for row, length in enumerate(LENGTHS):
        alone = cache_of(model, **SETTINGS)
        alone.prompt_columns = 0
        models.step(model, alone, models.prompt(length, seed=length))
        for layer in range(model.config.num_hidden_layers):
            for got, expected in zip(batch.positions(layer, row), alone.positions(layer), strict=True):
                assert np.array_equal(got, expected)
