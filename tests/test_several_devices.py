"""A model over several devices: its layers have pools of their own, and keep what they keep on one.

Without GPUs the emulated device has two names, and layers lie on them in turn.
"""

import itertools

import models
import pytest
import torch
from caches import cache_of, contents

import reasonalloc as ra
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.graph import why_not
from reasonalloc.store import backends
from reasonalloc.store.pages import PagePool

DEVICES = (torch.device("cpu"), torch.device("cpu", 0))  # two keys of the pools, one memory
HOW = {"max_new_tokens": 40, "do_sample": False}


@pytest.fixture
def in_turn(monkeypatch):
    """Layers get their pools in turn on both devices."""
    emulated = pytest.importorskip("reasonalloc._cuda_emulated")
    turn = itertools.cycle(DEVICES)

    def pool_of(cache, key):
        backend = backends.Backend("cuda-emulated", next(turn), emulated.backend)
        page_format = cache.policy.storage.page_format(key.dtype)
        return cache._pools.setdefault(backend.device, PagePool(page_format, key.shape[3], backend))

    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    return lambda: monkeypatch.setattr(ra.ReasonAllocCache, "pool_of", pool_of)


@pytest.mark.core
@pytest.mark.parametrize("method", ["reasonalloc", "dynamickv"])
def test_layers_on_two_devices_keep_what_they_keep_on_one(method, in_turn):
    model, ids = models.tiny(), models.prompt(40)
    changes = {"method": method, "budget": 24, "interval": 8, "window": 4}
    one, two = cache_of(model, **changes), cache_of(model, **changes)
    expected = model.generate(ids, **cache_argument(one), **HOW)
    in_turn()
    got = model.generate(ids, **cache_argument(two), **HOW)
    assert torch.equal(got, expected)
    assert contents(two) == contents(one)
    assert two.stats()["evicted"] > 0
    assert len(two._pools) == 2 and len(one._pools) == 1
    assert sum(pool.bytes for pool in two._pools.values()) == one.pool.bytes
    assert all(0 < pool.bytes < one.pool.bytes for pool in two._pools.values())
    assert sorted(two.stats()["backends"]) == sorted(f"cuda-emulated on {device}" for device in DEVICES)
    assert why_not(two) == "its layers lie on several devices"
    for cache in (one, two):  # rows that move take pages of both
        cache.batch_repeat_interleave(2)
    more = models.prompt(1).repeat(2, 1)
    assert torch.equal(models.step(model, one, more), models.step(model, two, more))
    two.reset()
    assert models.step(model, two, ids).isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["reasonalloc", "dynamickv"])
def test_a_model_over_two_gpus(method, monkeypatch):
    if torch.cuda.device_count() < 2:
        pytest.skip("no two GPUs here")
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setenv(backends.VARIABLE, "cuda")
    changes = {"method": method, "budget": 24, "interval": 8, "window": 4}
    ids = models.prompt(40).to("cuda:0")
    results = []
    for spread in (False, True):
        model = models.build("llama").to("cuda:0")
        if spread:
            layers = range(len(model.model.layers))
            places = {f"model.layers.{i}": i % 2 for i in layers}
            names = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
            model = accelerate.dispatch_model(model, {**places, **dict.fromkeys(names, 0)})
        cache = cache_of(model, **changes)
        tokens = model.generate(ids, **cache_argument(cache), **HOW)
        results.append((tokens.tolist(), contents(cache), len(cache._pools)))
    (tokens, kept, pools), (other_tokens, other_kept, other_pools) = results
    assert (pools, other_pools) == (1, 2)
    assert other_tokens == tokens
    assert other_kept == kept
