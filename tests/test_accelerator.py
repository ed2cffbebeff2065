"""A model on an accelerator, its cache in host memory or beside it.

Without a GPU the copies are tested, from CPU to CPU, and the CUDA backend on its emulation.
"""

from __future__ import annotations

import caches
import models
import numpy as np
import pytest
import torch
from transformers import DynamicCache

import reasonalloc as ra
from reasonalloc.hf import states
from reasonalloc.hf.attention import using
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.decode import Sampling
from reasonalloc.hf.decode import generate as chains
from reasonalloc.lab.evaluate.forcing import forced_log_probs, full_log_probs

TIGHT = {"budget": 24, "interval": 16, "window": 4}


ON_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda-copies", "cuda")]


@pytest.fixture(params=["copies", "emulated", *ON_GPU])
def device(request, monkeypatch):
    if request.param.startswith("cuda"):
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")
        monkeypatch.setenv("REASONALLOC_BACKEND", "cpu" if request.param == "cuda-copies" else "cuda")
        return "cuda"
    if request.param == "emulated":
        pytest.importorskip("reasonalloc._cuda_emulated")
        monkeypatch.setenv("REASONALLOC_BACKEND", "cuda-emulated")
        return "cpu"
    monkeypatch.setattr(states, "in_host_memory", states.copied)
    return "cpu"


def build(device, name="llama", **changes):
    return models.build(name, **changes).to(device)


def test_the_parts_of_one_copy():
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    for given, got in zip((query, key, value), states.copied(query, key, value), strict=True):
        assert torch.equal(given, got)
        assert got.stride(-1) == 1
        assert got.data_ptr() != given.data_ptr()


@pytest.mark.parametrize("name", ["llama", "llama-mqa", "qwen3", "gemma3"])
def test_nothing_evicted_gives_the_stock_tokens(name, device):
    model, ids = build(device, name), models.prompt(14).to(device)
    how = {"max_new_tokens": 40, "do_sample": False}
    expected = model.generate(ids, **cache_argument(DynamicCache(config=model.config)), **how)
    cache = ra.ReasonAllocCache(model, ra.Config(budget=400))
    got = model.generate(ids, **cache_argument(cache), **how)
    assert got.device == ids.device
    assert torch.equal(expected, got)


def test_a_row_in_a_batch_is_the_row_alone(device):
    model, config = build(device), ra.Config(**TIGHT)
    prompts = [models.prompt(n, seed=n)[0] for n in (9, 30, 17)]
    ids, mask = models.left_padded(prompts)
    batch = ra.ReasonAllocCache(model, config)
    how = {"max_new_tokens": 40, "do_sample": False}
    together = model.generate(ids.to(device), attention_mask=mask.to(device), **cache_argument(batch), **how)
    for row, own in enumerate(prompts):
        alone = ra.ReasonAllocCache(model, config)
        expected = model.generate(own[None].to(device), **cache_argument(alone), **how)
        assert torch.equal(together[row, -40:], expected[0, -40:])
        for i in range(3):
            for a, b in zip(batch.positions(i, row), alone.positions(i), strict=True):
                assert np.array_equal(a, b)


@pytest.mark.parametrize("method", caches.BUDGETED)
def test_the_cut_is_that_of_a_model_on_the_cpu(method, device):
    ids = models.prompt(120)
    made = []
    for where in ("cpu", device):
        model = build(where)
        cache = ra.ReasonAllocCache(model, ra.Config(method=method, **TIGHT))
        models.step(model, cache, ids[:, :40].to(where))
        for i in range(40, 120):
            models.step(model, cache, ids[:, i : i + 1].to(where))
        made.append(cache)
    here, there = made
    assert here.stats()["evicted"] > 0
    for i in range(3):
        for a, b in zip(here.positions(i), there.positions(i), strict=True):
            assert np.array_equal(a, b)


def test_beams_and_rows_named_on_the_device(device):
    how = {"num_beams": 3, "max_new_tokens": 30, "do_sample": False}
    texts = []
    for where in ("cpu", device):
        model = build(where)
        cache = ra.ReasonAllocCache(model, ra.Config(**TIGHT))
        texts.append(model.generate(models.prompt(20, rows=2).to(where), **cache_argument(cache), **how).cpu())
        kept = cache.slots()[[4, 0]]
        cache.batch_select_indices(torch.tensor([4, 0], device=where))
        assert np.array_equal(cache.slots(), kept)
    assert torch.equal(*texts)


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=40), Sampling(0.8, 0.9, 40, seed=3)])
def test_chains_of_the_evaluation(sampling, device):
    prompts = [(str(n), models.prompt(n, seed=n)[0].tolist()) for n in (9, 30, 17)]
    made = []
    for where in ("cpu", device):
        found = chains(build(where), ra.Config(**TIGHT), prompts, frozenset([5]), sampling)
        made.append({x.key: (x.ids, x.finish, x.peak_bytes) for x in found})
    assert made[0] == made[1]


def test_forced_texts_and_the_wave(device):
    text = models.prompt(60)[0]
    seen = []
    for where in ("cpu", device):
        model = build(where)
        cache = ra.ReasonAllocCache(model, ra.Config(**TIGHT))
        with using(model):
            forced = torch.stack(list(forced_log_probs(model, cache, text[:20], text[20:]))).cpu()
        seen.append((forced, full_log_probs(model, text[:20].to(where), text[20:]).cpu(), cache.stats()["wave"]))
    torch.testing.assert_close(seen[0][0], seen[1][0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-3, atol=1e-3)
    assert seen[0][2] == seen[1][2]
