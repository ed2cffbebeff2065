"""Clocks and memory of the benchmarks: turns, ratios, what a process takes."""

from __future__ import annotations

import os

import pytest
import torch

from reasonalloc.lab.bench import (
    report,
    resident,
    timing,
)


def test_tensors_without_data_are_not_counted():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(1000)
    before = resident.tensor_bytes()
    real = torch.empty(1000)
    assert resident.tensor_bytes() == before + real.nbytes
    assert fake.shape == real.shape


def test_turns_and_ratios():
    order = []

    def contender(name, seconds):
        return lambda: order.append(name) or seconds

    samples = timing.take_turns({"ours": contender("a", 2.0), "peer": contender("b", 6.0)}, rounds=3)
    assert order == ["a", "b"] * 4  # one round is thrown away
    found = timing.compared(samples)
    assert found["seconds"] == {"ours": [2.0] * 3, "peer": [6.0] * 3}
    assert found["ratio"] == {"peer": 3.0}


def test_a_limit_ends_the_rounds():
    samples = timing.take_turns({"ours": lambda: 1.0}, rounds=1000, limit_s=0.0)
    assert len(samples["ours"]) == timing.LEAST_ROUNDS


def test_one_core_is_undone():
    before, count = timing.cores(), torch.get_num_threads()
    with timing.one_core() as core:
        assert timing.cores() == {core}
        assert torch.get_num_threads() == 1
    assert (timing.cores(), torch.get_num_threads()) == (before, count)


def test_rise_sees_what_is_used_and_what_stays():
    size = 64 << 20
    passing = resident.rise(lambda: torch.ones(size // 4).sum())
    assert passing["peak_bytes"] > 0.9 * size
    assert passing["kept_bytes"] < size // 2
    kept = []
    assert resident.rise(lambda: kept.append(torch.ones(size // 4)))["kept_bytes"] > 0.9 * size


def test_tensors_are_counted_once():
    before = resident.tensor_bytes()
    x = torch.zeros(1000, 1000)
    views = [x, x[0], x.view(-1)]
    assert resident.tensor_bytes() - before == 4_000_000
    del views


@pytest.mark.slow
def test_work_in_a_fresh_process():
    assert resident.in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="no folder"):
        resident.in_fresh_process(report.write_report, directory="no folder")
