"""benchmarks/gpu.py runs whole without a GPU, on the emulation: what it times is right, what it writes can be read."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu
import gpu_layers
import gpu_peers
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
    assert [len(result[part]) for part in gpu.PARTS] == [3, 3, 1, 3, 3, 2]
    for row in result["attention"]:
        assert row["errors"]["ours"] < 1e-5 and len(row["seconds"]["ours"]) == len(row["seconds"]["SDPA"]) == 3
    (cut,) = result["cuts"]
    assert cut["kept_as_published"] >= 0.98
    names = [row["cache"] for row in result["decode"]]
    assert names == ["ours", "DynamicCache", "StaticCache"]
    assert [row["cache"] for row in result["steps"]] == ["ours, rkv", "ours, h2o", "ours, full"]
    for row in result["decode"] + result["steps"]:
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


class FakeFlashInfer:
    """The kernels on CUDA cores are there; those on tensor cores would have to be compiled, which fails."""

    asked: list[bool]

    def __init__(self, missing: frozenset[bool]) -> None:
        asked = self.asked = []

        class Wrapper:
            def __init__(self, workspace, layout, use_tensor_cores, backend):
                self.matrix = use_tensor_cores

            def plan(self, *arguments, **kind):
                asked.append(self.matrix)
                if self.matrix in missing:
                    raise RuntimeError("Ninja build failed. Ninja output:\n" + "nvcc ...\n" * 200)

            def run(self, query, cache):
                return query

        self.BatchDecodeWithPagedKVCacheWrapper = Wrapper


@pytest.mark.parametrize("missing", [frozenset(), {True}, {False}, {False, True}])
def test_a_kind_of_flashinfer_that_cannot_be_had_is_left_out_alone(missing, emulated, monkeypatch, capsys):
    fake, shape, clock = FakeFlashInfer(missing), gpu_layers.Shape(2, 2, 64), Clock(torch.device("cpu"), 2)
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    monkeypatch.setattr(gpu_peers, "LEFT_OUT", set())
    kinds = {False: "FlashInfer", True: "FlashInfer, tensor cores"}
    with torch.no_grad():
        rows = [gpu_layers.attention(shape, gpu_layers.Case(1, n), torch.float32, clock, 2) for n in (20, 40)]
    for row in rows:
        assert set(row["seconds"]) == {"ours", "SDPA", *(name for kind, name in kinds.items() if kind not in missing)}
    told = capsys.readouterr().err.splitlines()  # once, not at every row, and no more than the reason
    assert told == [f"without {kinds[kind]}: Ninja build failed. Ninja output:" for kind in kinds if kind in missing]
    assert all(fake.asked.count(kind) == 1 for kind in missing)


@pytest.mark.parametrize("scale", [None, 0.7])
def test_flash_attention_beside_ours(scale, emulated, monkeypatch, capsys):
    """A stand-in with the interface of its decode; one that is wrong is left out."""

    def flash_attn_with_kvcache(query, keys, values, cache_seqlens, softmax_scale, causal):
        assert causal and cache_seqlens.dtype == torch.int32
        query, keys, values = (x.transpose(1, 2) for x in (query, keys, values))
        seen = torch.arange(keys.shape[2]) < cache_seqlens[:, None]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, seen[:, None, None], scale=scale or softmax_scale, enable_gqa=True
        )
        return out.transpose(1, 2)

    fake = SimpleNamespace(flash_attn_with_kvcache=flash_attn_with_kvcache)
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    monkeypatch.setattr(gpu_peers, "LEFT_OUT", set())
    shape, clock = gpu_layers.Shape(2, 2, 64), Clock(torch.device("cpu"), 2)
    with torch.no_grad():
        row = gpu_layers.attention(shape, gpu_layers.Case(3, 40, ragged=True), torch.float32, clock, 2)
    assert ("FlashAttention" in row["seconds"]) == (scale is None)
    assert ("without FlashAttention: it is" in capsys.readouterr().err) == (scale is not None)


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
    assert "unknown part 'speed'; parts are attention, kernels, cuts, steps, decode, prompts" in capsys.readouterr().err
