"""benchmarks/gpu.py runs whole without a GPU, on the emulation: what it times is right, what it writes can be read."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import gpu_layers
from gpu_timing import Clock, in_turn

from reasonalloc.store import backends

pytest.importorskip("reasonalloc._cuda_emulated")


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


def test_every_part_runs(emulated, tmp_path, capsys):
    output = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--tiny", "--output", str(output)])
    result = json.loads(output.read_text())
    assert [len(result[part]) for part in gpu.PARTS] == [3, 3, 1, 3, 2]
    for row in result["attention"]:
        assert row["errors"]["ours"] < 1e-5 and len(row["seconds"]["ours"]) == len(row["seconds"]["SDPA"]) == 3
    (cut,) = result["cuts"]
    assert cut["kept_as_published"] >= 0.98
    names = [row["cache"] for row in result["decode"]]
    assert names == ["ours", "DynamicCache", "StaticCache"]
    for row in result["decode"]:
        assert row["step_ms"] == pytest.approx(statistics.fmean(row["samples"]) * 1e3)
    assert result["copy_bytes_per_second"] > 0
    told = capsys.readouterr().out
    assert all(part in told for part in gpu.PARTS) and "| StaticCache |" in told


def test_a_wrong_result_is_not_timed(emulated, monkeypatch):
    monkeypatch.setattr(gpu_layers.Layer, "scale", 0.3, raising=True)
    case, clock = gpu_layers.Case(1, 40), Clock(torch.device("cpu"), 1)
    right = gpu_layers.scaled_dot_product_attention
    monkeypatch.setattr(gpu_layers, "scaled_dot_product_attention", lambda *a, scale, **k: right(*a, scale=0.1, **k))
    with pytest.raises(RuntimeError, match="from float32, allowed are"):
        gpu_layers.attention(gpu_layers.Shape(2, 2, 64), case, torch.float32, clock, 3)


def test_contenders_take_turns():
    order: list[str] = []
    clock = Clock(torch.device("cpu"))
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    samples = in_turn(clock, calls, 3, 2, before={"b": lambda: order.append("fed")})
    assert order == ["a", "b"] + ["a", "fed", "b"] * 3
    assert [len(x) for x in samples.values()] == [3, 3]


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["speed"])
    assert "unknown part 'speed'; parts are attention, kernels, cuts, decode, prompts" in capsys.readouterr().err
