"""Caches of tiny models for tests of what goes wrong."""

import models
import pytest
import torch

import reasonalloc as ra

SETTINGS = {"budget": 24, "interval": 8, "window": 4}
# Those that need a file of gates and take no budget: tests/test_gates.py.
GATED = ("duo", "rlkv")
# Those that need a calibration: tests/test_triattention.py.
CALIBRATED = ("triattention",)
UNGATED = [name for name in ra.methods() if name not in (*GATED, *CALIBRATED)]
BUDGETED = [name for name in UNGATED if name != "full"]


def cache_of(model, **changes):
    options = {"method": "rkv", **SETTINGS, **changes}
    return ra.ReasonAllocCache(model, ra.Config(**{k: v for k, v in options.items() if v is not None}))


def contents(cache):
    figures = cache.stats()
    kept = [p.tolist() for i in figures["layers"] for r in range(len(figures["slots"])) for p in cache.positions(i, r)]
    others = [getattr(x, "cumulative_length", 0) for x in cache.layers]
    return kept, others, cache.get_seq_length(), figures["bytes"], figures["slots"]


def assert_closed(cache, model, reason):
    """Each use says so, until reset()."""
    assert reason in cache.stats()["closed"]
    calls = [
        lambda: models.step(model, cache, models.prompt(1)),
        lambda: cache.reorder_cache(torch.tensor([0])),
        lambda: cache.batch_repeat_interleave(2),
        lambda: cache.crop(-1),
        lambda: models.step(model, cache, models.prompt(1)),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"the cache is closed .*reset\(\)"):
            call()
    cache.reset()
    assert cache.stats()["closed"] is None
    assert_works(cache, model)


def assert_works(cache, model):
    """A fresh or reset cache gives what a stock one gives."""
    assert models.step(model, cache, models.prompt(12)).isfinite().all()
    assert models.step(model, cache, models.prompt(1)).isfinite().all()
    assert cache.stats()["slots"][0][0][0] == 13
