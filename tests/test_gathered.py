"""Whole caches whose scores are made of gathered statistics."""

import models
import numpy as np
import pytest
import torch

import reasonalloc as ra
from reasonalloc.hf import saved_file
from reasonalloc.store import backends

METHODS = ["h2o", "lazyeviction", "raas"]
SMALL = {"budget": 24, "interval": 8, "window": 4}


@pytest.fixture(params=["cpu", "cuda-emulated"], autouse=True)
def where(request, monkeypatch):
    """Name of the backend."""
    if request.param != "cpu":
        pytest.importorskip("reasonalloc._cuda_emulated")
        monkeypatch.setenv(backends.VARIABLE, request.param)
    return request.param


def cache_of(model, method, **changes):
    return ra.ReasonAllocCache(model, ra.Config(method=method, **(SMALL | changes)))


def columns(cache, row=0):
    return [x.core.columns(row, h)[1] for x in cache.ragged for h in range(x.heads)]


def go_on(model, cache, steps, seed=5, rows=1):
    logits = []
    for i in range(steps):
        logits.append(models.step(model, cache, models.prompt(1, rows, seed=seed + i)))
    return torch.cat(logits, 1)


@pytest.mark.parametrize("prompt", ["all", "window", "none"])
@pytest.mark.parametrize("method", METHODS)
def test_a_padded_row_gathers_what_it_gathers_alone(method, prompt):
    model, options = models.tiny(), {"prompt_statistics": prompt}
    rows = [models.prompt(n, seed=n)[0] for n in (40, 13)]
    batch = cache_of(model, method, options=options)
    models.step(model, batch, *models.left_padded(rows))
    alone = []
    for ids in rows:
        alone.append(cache_of(model, method, options=options))
        models.step(model, alone[-1], ids[None])
    for row, cache in enumerate(alone):
        first = cache.ragged[0].heads  # of the first layer, whose keys are those of the row alone to the bit
        assert columns(batch, row)[:first] == columns(cache)[:first]
        for one, two in zip(columns(batch, row), columns(cache), strict=True) if method == "h2o" else ():
            np.testing.assert_allclose(np.frombuffer(one, np.float32), np.frombuffer(two, np.float32), rtol=1e-4)
    assert any(np.frombuffer(x, np.int32).any() for x in columns(batch)) or prompt == "none"


def test_sums_are_those_of_all_queries(where):
    """Nothing evicted: what all heads have been given is one for each query head and query."""
    model = models.tiny()
    cache = cache_of(model, "h2o", budget=500)
    models.step(model, cache, models.prompt(30))
    assert cache.stats()["backends"] == [f"{where} on cpu"]
    go_on(model, cache, 9)
    for layer in cache.ragged:
        for h in range(layer.heads):
            sums = np.frombuffer(layer.core.columns(0, h)[1], np.float32)
            assert sums.sum() == pytest.approx(39 * layer.query_heads / layer.heads, rel=1e-5)


def test_the_newest_half_stays():
    model = models.tiny()
    cache = cache_of(model, "h2o", budget=32, options={"recent": 0.5})
    models.step(model, cache, models.prompt(60))
    for layer in cache.ragged:
        for held in cache.positions(layer.index):
            assert len(held) == 32 and held[-16:].tolist() == list(range(44, 60))
            assert held[0] < 44


def test_under_a_kept_prompt_the_newest_half_can_be_all_that_is_left():
    """docs/methods.md: prompt and recent half fill the budget, and it keeps what the newest tokens alone would be."""
    model = models.tiny()

    def kept(method, budget):
        cache = cache_of(model, method, budget=budget, keep_prompt=True)
        models.step(model, cache, models.prompt(20))
        for i in range(60):  # the same tokens, whatever each would have chosen
            models.step(model, cache, models.prompt(1, seed=5 + i))
        return [list(map(list, cache.positions(x.index))) for x in cache.ragged]

    with pytest.warns(UserWarning, match="keeps 15 newest tokens of 30 a head, and 20 of the prompt"):
        newest = kept("h2o", 30)
    assert newest == kept("streaming", 30)
    assert kept("h2o", 60) != kept("streaming", 60)  # 20 of the prompt, 30 newest, 10 by attention


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded(method, tmp_path):
    model, path = models.tiny(), tmp_path / "cache"
    cache = cache_of(model, method)
    models.step(model, cache, models.prompt(60))
    go_on(model, cache, 13)
    cache.save(path)
    loaded = ra.ReasonAllocCache.load(path, model)
    assert columns(loaded) == columns(cache)
    assert torch.equal(go_on(model, cache, 40, 30), go_on(model, loaded, 40, 30))
    assert columns(loaded) == columns(cache)
    header, arrays = saved_file.read(path)
    for change in (lambda x: x[:-1], lambda x: x.float(), lambda x: x * 0 - 2):
        arrays_now = {**arrays, "layer.0.statistics": change(arrays["layer.0.statistics"]).contiguous()}
        saved_file.write(tmp_path / "bad", header, arrays_now)
        with pytest.raises(ValueError, match="is not a saved cache of this model"):
            ra.ReasonAllocCache.load(tmp_path / "bad", model)


def test_a_backend_without_the_scorer(monkeypatch):
    """Host memory, and stats() says so; asked for by name it is refused."""
    pytest.importorskip("reasonalloc._cuda_emulated")
    monkeypatch.setattr(backends.Backend, "supports", lambda _self, scorer: scorer != "h2o")
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    model = models.tiny()
    cache = cache_of(model, "h2o")
    with pytest.warns(UserWarning, match="keys on cpu lies in host memory: the backend cuda-emulated has no scorer"):
        models.step(model, cache, models.prompt(40))
    assert cache.stats()["backends"] == ["cpu on cpu (the backend cuda-emulated has no scorer 'h2o')"]
    other = cache_of(model, "rkv")
    models.step(model, other, models.prompt(40))
    assert other.stats()["backends"] == ["cuda-emulated on cpu"]
    asked = cache_of(model, "h2o", device="model")
    with pytest.raises(ValueError, match=r"the backend cuda-emulated has no scorer 'h2o'"):
        models.step(model, asked, models.prompt(40))
