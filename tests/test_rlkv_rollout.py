"""Rollouts over places fixed beforehand: the chains of transformers' cache, and steps that can be captured."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import models
import pytest
import torch
from elsewhere import Elsewhere, needs_meta
from transformers import DynamicCache

from reasonalloc.hf.decode import DecodeBatch, Sampling, decode
from reasonalloc.lab.rlkv import rollout
from reasonalloc.lab.rlkv.mixed import Mixture, gate_shape, mixing
from reasonalloc.lab.rlkv.rollout import FixedBatch, batch_of, rows_at_once, why_not

LENGTHS = (9, 30, 17, 24, 3, 12)
GATES = torch.tensor([[0.0, 1.0], [0.5, 0.2], [0.9, 0.1]])


def prompts(lengths=LENGTHS):
    return [(str(i), models.prompt(n, seed=i)[0].tolist()) for i, n in enumerate(lengths)]


def made(batch, rows, stop, sampling):
    """Chains by key, and the logits that each of their tokens was drawn from."""
    seen: dict[str, list[torch.Tensor]] = {key: [] for key, _ in rows}

    def watch(logits, names, picked):
        for name, x in zip(names, logits.clone(), strict=True):
            seen[name].append(x)

    chains = {c.key: (c.ids, c.finish) for c in decode(batch, rows, stop, sampling, watch=watch)}
    return chains, {key: torch.stack(x) for key, x in seen.items()}


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama-mqa"])
@pytest.mark.parametrize("mixed", ["mixed", "packed", ""])
@pytest.mark.parametrize(("temperature", "few"), [(0.0, 1), (1.0, 1), (1.0, 16)])
def test_the_chains_of_transformers_cache(name, mixed, temperature, few, monkeypatch):
    """Padded rows, of which some end early and some wait for others; steps of several widths."""
    monkeypatch.setattr(rollout, "_BLOCK", 24)
    monkeypatch.setattr(rollout, "_FEW", few)
    model, rows, sampling = models.tiny(name), prompts(), Sampling(temperature, 1.0, 40, 3)
    stop = frozenset(range(1, 4)) if temperature else frozenset(range(1, 12))
    gates = GATES[:, : gate_shape(model)[1]]
    mixture = Mixture(gates, 2, 5)
    with mixing(model, mixture) if mixed else contextlib.nullcontext():
        ids = [x for _, x in rows]
        expected, logits = made(DecodeBatch(model, DynamicCache(config=model.config), ids), rows, stop, sampling)
        mixture.packed = mixed == "packed"
        fixed = FixedBatch(model, ids, 40)
        got, got_logits = made(fixed, rows, stop, sampling)
    assert got == expected
    assert len({len(ids) for ids, _ in got.values()}) > 2
    assert len({width for _, width in fixed._warm}) > 1
    assert (len({rows for rows, _ in fixed._warm}) > 1) == (few == 1)
    for key, x in logits.items():
        torch.testing.assert_close(got_logits[key], x, rtol=1e-4, atol=1e-4)


class Recorded:
    """Stands in for a graph: runs the step anew, and writes over the logits that it gave first."""

    made = 0

    def __init__(self, call, pool=None):
        self.call, self.result = call, None
        Recorded.made += 1

    def replay(self):
        fresh = self.call()
        self.result.copy_(fresh)


def test_steps_are_captured_once_for_each_width_and_number_of_rows(monkeypatch):
    monkeypatch.setattr(rollout, "_BLOCK", 64)
    monkeypatch.setattr(rollout, "_FEW", 1)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)

    def capture(call, pool, device):
        graph = Recorded(call)
        graph.result = torch.zeros(len(batch.tokens), model.config.vocab_size)
        return graph, graph.result

    monkeypatch.setattr("reasonalloc.hf.capture.capture", capture)
    model, rows, sampling = models.tiny("llama"), prompts(), Sampling(1.0, 1.0, 60, 3)
    with mixing(model, Mixture(GATES, 2, 5)):
        ids, stop = [x for _, x in rows], frozenset(range(1, 4))
        expected = made(DecodeBatch(model, DynamicCache(config=model.config), ids), rows, stop, sampling)[0]
        batch = FixedBatch(model, ids, 60, graphs=True)
        got = made(batch, rows, stop, sampling)[0]
    assert got == expected
    assert batch.captures == Recorded.made <= len(batch._warm)
    assert batch.replays > 2 * batch.captures


def test_gates_are_read_in_each_step():
    """Of the tensor that the optimizer moves in place, not of a copy."""
    model, ids = models.tiny("llama"), [x for _, x in prompts()]
    gates, logits = torch.ones(3, 2), []
    with mixing(model, Mixture(gates, 1, 2, packed=True)):
        for moved in (False, True):
            gates.fill_(1)
            batch = FixedBatch(model, ids, 8)
            batch.forward()
            if moved:
                gates.fill_(0)
            batch.append(torch.full((len(ids),), 5))
            logits.append(batch.forward())
    assert (logits[0] - logits[1]).abs().max() > 0.1


@needs_meta
@pytest.mark.parametrize("packed", [True, False])
def test_a_step_does_not_wait_for_the_device(packed):
    model = models.build("llama").to("meta")
    with mixing(model, Mixture(torch.ones(3, 2, device="meta"), 2, 5, packed=packed)), Elsewhere() as device:
        batch = FixedBatch(model, [x for _, x in prompts()], 40)
        batch.forward()
        for _ in range(3):
            batch.append(torch.full((len(LENGTHS),), 5))
            device.waits.clear()
            batch.forward()
            assert not device.waits


def test_where_places_are_fixed():
    assert not why_not(models.tiny("llama"))
    assert "full attention" in why_not(models.tiny("gemma3"))
    model = models.build("llama")
    model.set_attn_implementation("eager")
    assert "its attention is eager" in why_not(model)
    assert type(batch_of(models.tiny("llama"), [[1, 2]], 4)) is DecodeBatch  # on a CPU all is as ever


def test_rows_at_once_fit_the_memory(monkeypatch):
    model = models.tiny("llama")
    assert rows_at_once(model, 100, 16, 240) == 16
    there = SimpleNamespace(config=model.config, device=torch.device("cuda"), dtype=torch.float32)
    row = 2 * 3 * 2 * 8 * 4 * 100  # keys and values of 3 layers with 2 heads of 8 numbers, 100 tokens
    for free, rows in ((10**9, 240), (2 * row * 100, 100), (row, 16)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**9))
        assert rows_at_once(there, 100, 16, 240) == rows
