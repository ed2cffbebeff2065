"""Traces of a tiny model, for tests."""

from __future__ import annotations

import models
import numpy as np
import torch

import reasonalloc as ra
from reasonalloc.trace import Trace

SETTINGS = {"interval": 8, "window": 4}


def feed(cache, ids, prompt=40):
    """The prompt [n] at once, then one token a step -> logits of each step."""
    logits = [models.step(cache.model, cache, ids[None, :prompt])[0, -1]]
    logits += [models.step(cache.model, cache, ids[None, i : i + 1])[0, -1] for i in range(prompt, len(ids))]
    return torch.stack(logits)


def text(tokens=100, seed=0):
    return models.prompt(tokens, seed=seed)[0]


def recorded(method="reasonalloc", tokens=100, seed=0, prompt=40, **settings):
    """(trace, cache) of a tiny model."""
    config = ra.Config(method=method, **{**({} if method == "full" else {"budget": 24}), **SETTINGS, **settings})
    cache, ids = ra.ReasonAllocCache(models.tiny(), config, record=True), text(tokens, seed)
    feed(cache, ids, prompt)
    return cache.trace(ids), cache


def assert_same(one: Trace, two: Trace):
    for name in ("ids", "cuts", "gone", "budgets", "lost", "quantiles", "ends"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    for name in ("prompt", "layers", "window", "interval", "settings", "model", "source", "text", "provenance"):
        assert getattr(one, name) == getattr(two, name), name
