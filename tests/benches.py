"""Benchmarks at tiny sizes, for tests: a small machine, a model, keys."""

from __future__ import annotations

import contextlib

import models
import pytest
import torch

from reasonalloc.lab.bench import (
    attention,
    decoding,
    kernels,
    kvpress_peer,
    memory,
    scratch,
    states,
    threads,
)

SHAPE = attention.Shape(heads=2, group=2, head_dim=16)


def direct(function, **arguments):
    """`in_fresh_process` without the process, which takes seconds to start."""
    return function(**arguments)


@contextlib.contextmanager
def small_machine():
    """A last-level cache of 64 KiB, small kernels, and no processes."""
    patch = pytest.MonkeyPatch()
    for module in (attention, threads):
        patch.setattr(module, "last_level_cache", lambda: 1 << 16)
    patch.setattr(kernels, "SHAPE", SHAPE)
    patch.setattr(kernels, "_chains", lambda tokens, log: ({k: chain(tokens) for k in ("real", "random")}, None))
    for module in (kernels, scratch, memory, kvpress_peer):
        patch.setattr(module, "in_fresh_process", direct)
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        patch.undo()


def chain(tokens, seed=0):
    return states.uncorrelated(SHAPE.heads, SHAPE.group, tokens, SHAPE.head_dim, seed)


class Lengths:
    """A tokenizer: a word is its length."""

    def __call__(self, text):
        return type("Encoding", (), {"input_ids": [min(len(word), 90) for word in text.split()]})()


def subject():
    return decoding.subject(models.build("llama"), None, "tiny", 0, ids=models.prompt(300))
