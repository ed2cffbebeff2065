"""The benchmarks at tiny sizes: what they check, the fields of their results, the report. No times are tested."""

import contextlib
import copy
import json
import os
import sys
from pathlib import Path

import models
import pytest
import torch
from transformers.cache_utils import DynamicCache

from reasonalloc.cli import main
from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.bench import (
    attention,
    bandwidth,
    compression,
    decoding,
    equal_memory,
    kernels,
    kvpress_peer,
    memory,
    recall,
    reference,
    report,
    resident,
    rkv_repo,
    run,
    scratch,
    states,
    steps,
    targets,
    threads,
    throughput,
    timing,
)
from reasonalloc.lab.bench.progress import silent
from reasonalloc.lab.bench.settings import Settings

SHAPE = attention.Shape(heads=2, group=2, head_dim=16)
F32, BF16 = torch.float32, torch.bfloat16

CLONE_UTILITIES = """
import torch
def compute_attention_scores(queries, keys): return "scores"
def cal_similarity(keys): return "similarity"
"""
CLONE = """
from . import cal_similarity, compute_attention_scores
from reasonalloc.lab.bench.reference import rkv_compress
class R1KV:
    def __init__(self, budget, window_size, kernel_size, mix_lambda): self.budget = budget
    def update_kv(self, keys, queries, values): return rkv_compress(queries, keys, values, self.budget)
"""


def direct(function, **arguments):
    """`in_fresh_process` without the process, which takes seconds to start."""
    return function(**arguments)


@pytest.fixture(scope="module")
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
    yield
    torch.set_num_threads(before)
    patch.undo()


def chain(tokens, seed=0):
    return states.uncorrelated(SHAPE.heads, SHAPE.group, tokens, SHAPE.head_dim, seed)


@pytest.fixture(scope="module")
def subject():
    return decoding.subject(models.build("llama"), None, "tiny", 0, ids=models.prompt(300))


@pytest.fixture(scope="module")
def results(small_machine, subject):
    """All parts at tiny sizes; kvpress is not present."""
    patch = pytest.MonkeyPatch()
    patch.setattr(memory, "load", lambda name: (models.build("llama"), Lengths(), "tiny"))
    patch.setattr(memory, "PROMPT", 8)
    patch.setattr(kvpress_peer, "DEFAULT_PYTHON", "nowhere")
    settings = Settings(
        quick=True, runs=1, budgets=(32,), chains=(256,), memory_limit=1_000_000, most_rows=3, memory_tokens=200
    )
    found = {
        "kernels": kernels.run(settings, silent),
        "throughput": throughput.run(settings, silent, given=subject, share_budgets=(32,)),
        "memory": memory.run(settings, silent),
        "kvpress": kvpress_peer.run(settings, silent),
    }
    patch.undo()
    return json.loads(json.dumps(found))


@pytest.fixture
def folder(results, tmp_path):
    """A folder of results."""
    for part, data in results.items():
        (tmp_path / f"{part}.json").write_text(json.dumps(data))
    return tmp_path


@pytest.fixture
def clone(tmp_path):
    """Something laid out like a clone of R-KV: its package does not import."""
    package = tmp_path / "R-KV" / "rkv" / "compression"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .rkv import R1KV")
    (package / "r1_kv.py").write_text(CLONE)
    (package.parent / "utils.py").write_text(CLONE_UTILITIES)
    return tmp_path / "R-KV"


# ---- Timing ----------------------------------------------------------------------------------------------------------


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


# ---- Memory of the process -------------------------------------------------------------------------------------------


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


# ---- Real keys -------------------------------------------------------------------------------------------------------


def test_states_are_what_the_model_saw():
    model, ids = models.tiny(), models.prompt(40)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, **cache_argument(cache))
    found = states.read(model, ids, [0, 2])
    assert torch.equal(found[1].keys, cache.layers[2].keys[0])
    assert torch.equal(found[1].values, cache.layers[2].values[0])
    attended = reference.sdpa_grouped(found[0].queries[None, :, -1:], found[0].keys[None], found[0].values[None])
    assert attended.isfinite().all()
    assert model.config._attn_implementation == "sdpa"


def test_parts_come_round():
    some = chain(10)
    part = some.part(8, 4)
    assert torch.equal(part.keys, some.keys[:, [8, 9, 0, 1]])
    assert torch.equal(part.queries, some.queries[:, [8, 9, 0, 1]])


def test_two_heads_side_by_side():
    layers = [chain(20, seed) for seed in range(2)]
    wide = states.side_by_side(layers, heads=4, group=3)
    assert wide.keys.shape == wide.values.shape == (4, 20, 32)
    assert wide.queries.shape == (12, 20, 32)
    assert torch.equal(wide.keys[2], torch.cat([layers[1].keys[0], layers[1].keys[1]], -1))


def test_text_is_as_long_as_asked():
    assert states.text_ids(Lengths(), 777).shape == (1, 777)


class Lengths:
    """A tokenizer: a word is its length."""

    def __call__(self, text):
        return type("Encoding", (), {"input_ids": [min(len(word), 90) for word in text.split()]})()


# ---- Compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_compression_is_checked_in_steady_state(dtype):
    ours = compression.Ours(chain(900), 300, dtype)
    ours.feed(300)
    ours.compress()
    ours.timed_cut()
    assert ours.checked_cut()["score_error"] < 1e-5
    assert sum(map(len, ours.positions())) == ours.total


def test_a_wrong_score_is_not_timed(monkeypatch):
    real = compression.rkv_published_form
    monkeypatch.setattr(compression, "rkv_published_form", lambda q, k: real(q, k) + 1e-3)
    with pytest.raises(RuntimeError, match="not timed"):
        list(compression.rows({"random": chain(600)}, [200], [F32], {}, 1))


def test_other_forms_must_keep_the_same():
    def newest(queries, keys, values, budget):
        return keys[:, :, -budget:], values[:, :, -budget:]

    with pytest.raises(RuntimeError, match="other tokens"):
        list(compression.rows({"random": chain(600)}, [200], [F32], {"newest": newest}, 1))


def test_a_clone_is_timed_as_it_is(clone):
    peers = {"R-KV repository": compression.repository_form(rkv_repo.load(clone))}
    (row,) = compression.rows({"random": chain(600)}, [200], [F32], peers, 1)
    assert row["kept_as_published"] == {"R-KV repository": 1.0}
    assert set(row["ratio"]) == {"published form", "R-KV repository"}
    assert "_reasonalloc_rkv_clone" not in sys.modules


def test_not_a_clone(tmp_path, clone):
    with pytest.raises(ValueError, match="clone of Zefan-Cai/R-KV"):
        rkv_repo.load(tmp_path)
    (clone / "rkv" / "utils.py").write_text("")
    with pytest.raises(ValueError, match="cal_similarity"):
        rkv_repo.load(clone)


def test_a_cut_with_recall_is_checked():
    (row,) = recall.rows({"random": chain(900)}, 300, [200], [BF16], 1)
    assert max(row["checked"].values()) < 1e-5 and set(row["ratio"]) == {"recall, same", "recall, int8"}
    assert 0 < row["cold_bytes"]["recall, int8"] < 0.6 * row["cold_bytes"]["recall, same"]


def test_the_published_form_keeps_the_window():
    some = chain(100)
    kept, _ = reference.rkv_compress(some.queries[None, :, -8:], some.keys[None], some.values[None], 40)
    assert kept.shape == (1, 2, 40, 16)
    assert torch.equal(kept[0, :, -8:], some.keys[:, -8:])


# ---- Attention -------------------------------------------------------------------------------------------------------


def test_peers_agree():
    case = attention.Case(SHAPE, F32, batch=2, n=50, copies=2)
    assert case.check() < 1e-5


def test_a_wrong_peer_is_not_timed(monkeypatch):
    monkeypatch.setitem(attention.PEERS, "wrong", lambda q, k, v: reference.sdpa_grouped(q, k, v) + 1)
    with pytest.raises(RuntimeError, match="wrong is off"):
        attention.Case(SHAPE, F32, batch=1, n=50, copies=1).check()


def test_steps_leave_the_length(small_machine):
    case = attention.Case(SHAPE, BF16, batch=1, n=40, copies=3)
    case.time_ours(5)
    assert [layer.tokens(0) for layer in case.layers] == [39, 39, 39]  # the newest token comes and goes


def test_a_sweep_comes_round():
    buffer = bandwidth.Buffer(10_000)
    seen = []
    for _ in range(3):
        assert buffer.sweep(4000, streamed=True) == 4000
        seen.append(buffer.next)
    assert seen == [4000, 8000, 4000]
    assert buffer.sweep(1 << 20) == 10_000


# ---- A model that decodes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dynamic", "static", "full"])
def test_filled_caches_go_on_as_a_model_that_read_the_text(subject, name):
    decoder = decoding.Decoder(subject, name, rows=2, room=80)
    decoder.fill(30)
    decoder.fill(60)
    decoder.step()
    cache = DynamicCache(config=subject.stock.config)
    with torch.no_grad():
        subject.stock(input_ids=models.prompt(300)[:, :60], **cache_argument(cache))
        want = subject.stock(input_ids=torch.ones(1, 1, dtype=torch.long), **cache_argument(cache)).logits[:, -1]
    assert decoder.tokens.tolist() == [[int(want.argmax())]] * 2
    assert int(decoder.cache.get_seq_length()) == decoder.length == 61


def test_a_budget_is_filled_to_its_steady_state(subject):
    decoder = decoding.Decoder(subject, "rkv-32", rows=2, room=0)
    decoder.fill(2000)
    slots = torch.tensor(decoder.cache.stats()["slots"])
    assert decoder.cache.stats()["routings"] >= 4
    assert slots.float().mean() <= 32 + decoding.INTERVAL
    assert equal_memory.row_bytes(subject, "rkv-32", 10_000) * 2 >= decoder.bytes()


def test_weights_are_shared(subject):
    assert subject.stock.lm_head.weight is subject.ours.lm_head.weight
    assert subject.stock.config._attn_implementation != subject.ours.config._attn_implementation


def test_overhead_watches_and_stops_watching(subject):
    before = steps.ALL_ATTENTION_FUNCTIONS["sdpa"]
    (row,) = steps.overhead(subject, [1], ["dynamic"], 16, 2)
    assert steps.ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert row["update_us"] > 0 and row["attention_us"] > 0


# ---- Equal memory ----------------------------------------------------------------------------------------------------


def test_curves():
    curve = equal_memory.Curve([(16, 1.0), (116, 3.0)])
    assert [curve.at(x) for x in (0, 16, 66, 116, 1000)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert curve.mean(116) == pytest.approx(2.0)
    assert curve.mean(216) == pytest.approx(2.5)


def test_batches():
    assert equal_memory.batches(10) == [1, 2, 4, 8, 10]
    assert equal_memory.batches(8) == [1, 2, 4, 8]
    assert equal_memory.batches(0) == []


def test_no_cache_is_above_the_limit(results):
    data = results["throughput"]
    for row in data["equal_memory"]:
        assert row["tried"]
        assert all(x["cache_bytes"] <= data["memory_limit"] and x["rows"] <= 3 for x in row["tried"])


def test_a_limit_that_fits_nothing(subject):
    (row,) = equal_memory.equal_memory(subject, ["static"], [256], 1000, 8, 1, False, silent)
    assert row["fits_rows"] == 0 and row["best"] is None


def test_whole_chains(subject):
    rows = list(equal_memory.equal_memory(subject, ["static", "rkv-32"], [64], 10**6, 2, 1, True, silent))
    assert [[x["rows"] for x in row["tried"]] for row in rows] == [[1, 2]] * 2


# ---- kvpress ---------------------------------------------------------------------------------------------------------


def test_no_kvpress(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kvpress_peer.interpreter(None) is None
    with pytest.raises(ValueError, match="no such file"):
        kvpress_peer.interpreter("nowhere/python")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    (tmp_path / "weights.gguf").touch()
    monkeypatch.setattr(kvpress_peer, "embedded_folder", lambda: tmp_path)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_kvpress_is_asked_by_its_own_interpreter(tmp_path, weights):
    order = tmp_path / "order"
    python = script(tmp_path / "python", f"cat > {order}; echo loading; echo '{{\"rows\": 2}}'")
    assert kvpress_peer.theirs(python, torch.ones(2, 3, dtype=torch.long), 5, "knorm") == {"rows": 2}
    told = json.loads(order.read_text())
    assert (told["press"], told["steps"], told["gguf_file"]) == ("knorm", 5, "weights.gguf")


def test_kvpress_that_fails_says_why(tmp_path, weights):
    python = script(tmp_path / "python", "echo first >&2; echo 'no kvpress here' >&2; exit 1")
    with pytest.raises(RuntimeError, match="no kvpress here"):
        kvpress_peer.theirs(python, torch.ones(1, 3, dtype=torch.long), 5, None)


@pytest.mark.parametrize("name", ["dynamic", "full", "rkv-32"])
def test_ours_in_the_setting_of_kvpress(monkeypatch, name):
    monkeypatch.setattr(kvpress_peer, "load", lambda name: (models.build("llama"), None, "tiny"))
    found = kvpress_peer.ours(models.prompt(40, rows=2).tolist(), 3, name)
    assert found["rows"] == 2 and len(found["step_seconds"]) == 3 and found["cache_bytes"] > 0


# ---- Report ----------------------------------------------------------------------------------------------------------


def test_the_report_comes_from_the_files_alone(folder):
    first = report.write_report(folder).read_text()
    assert report.write_report(folder).read_text() == first
    for part in ("Kernels", "Throughput", "Memory"):
        assert f"## {part}" in first
    for line in first.splitlines():
        assert not line.startswith("|") or line.count("|") > 3
    tables = [block for block in first.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 9
    for table in tables:
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_samples_are_in_the_files(results):
    assert all(x["seconds"]["ours"] for x in results["kernels"]["compression"])
    assert all(x["seconds"]["read"] for x in results["kernels"]["attention"])
    assert {"accumulated", "recurrence"} == set(results["kernels"]["gathering"][0]["ratio"])
    assert {x["from"] for x in results["kernels"]["attention"]} == {"memory", "last-level cache"}
    assert all(x["bytes"]["ours"]["first"]["peak_bytes"] >= 0 for x in results["kernels"]["scratch"])
    assert all(set(x["ratio"]["full"]) == {"static", "dynamic"} for x in results["throughput"]["steps"])
    assert results["throughput"]["cuts"][0]["share"] > 0
    assert results["memory"]["results"][1]["held_of_bound"] > 0
    for data in results.values():
        assert data["provenance"]["machine"]["cpu_flags"]
        assert "torch" in data["provenance"]["versions"]


def state(results, what):
    return {row[0]: row[3] for row in targets.table(results)}[what]


def test_parts_that_were_not_run(folder):
    (folder / "throughput.json").unlink()
    (folder / "memory.json").write_text('{"schema": 0}')
    text = report.write_report(folder).read_text()
    assert "throughput: not measured." in text
    assert "memory.json is of schema 0" in text
    results, _ = report.load(folder)
    assert list(results) == ["kernels", "kvpress"]
    assert state(results, "nothing evicted against StaticCache, every case") == "not measured"


def test_a_damaged_file(folder):
    (folder / "memory.json").write_text("{")
    with pytest.raises(ValueError, match=r"memory\.json is not a benchmark's result: .*not JSON"):
        report.write_report(folder)
    with pytest.raises(ValueError, match="not a folder"):
        report.write_report(folder / "none")


@pytest.mark.parametrize(("ratio", "verdict"), [(101.0, "met"), (99.0, "missed")])
def test_the_worst_case_decides(results, ratio, verdict):
    doctored = copy.deepcopy(results)
    for row in doctored["kernels"]["compression"]:
        row["ratio"] = {"published form": 500.0}
    doctored["kernels"]["compression"][1]["ratio"]["published form"] = ratio
    assert doctored["kernels"]["compression"][1]["n"] == 1152
    assert state(doctored, "compression, real keys, n = 1,152") == verdict


def test_targets_that_must_stay_below(results):
    doctored = copy.deepcopy(results)
    what = "score + route + evict, share of decode time, interval 128"
    for share, verdict in ((0.0099, "met"), (0.0101, "missed")):
        doctored["throughput"]["cuts"][0]["share"] = share
        assert state(doctored, what) == verdict


def test_speed_against_stock_caches(results):
    doctored = copy.deepcopy(results)
    row = doctored["throughput"]["steps"][0]
    row |= {"batch": 8, "length": 4096}
    for ratio, verdict in ((2.3, "met"), (2.1, "missed")):
        row["ratio"]["reasonalloc-256"]["static"] = ratio
        assert state(doctored, "budget 256 against StaticCache, batch 8, 4,096 tokens") == verdict


def test_a_machine_whose_memory_feeds_no_second_thread(results):
    doctored = copy.deepcopy(results)
    row = {"dtype": "float32", "batch": 1, "n": 4096}
    what = "attention, two threads against one"
    for ours, reading, verdict in ((1.8, 1.9, "met"), (1.5, 1.9, "missed"), (1.2, 1.25, "met"), (1.1, 1.25, "missed")):
        doctored["kernels"]["threads"] = [row | {"ours": {"ratio": {"one": ours}}, "read": {"ratio": {"one": reading}}}]
        assert state(doctored, what) == verdict


def test_every_target_has_a_part():
    assert {x.part for x in targets.TARGETS} == {"kernels", "throughput", "memory"}
    assert len({x.what for x in targets.TARGETS}) == len(targets.TARGETS)


def test_two_threads(small_machine):
    (row,) = threads.measure(sorted(timing.cores()), SHAPE, ["float32"], [1], 64, 1)
    torch.set_num_threads(1)
    assert all(row[who]["ratio"]["one"] > 0 for who in ("ours", "SDPA grouped", "read"))


# ---- Command line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["nosuch"], "nosuch"),
        (["--runs", "0"], "--runs"),
        (["--memory-limit", "2XB"], "2XB"),
        (["--memory-limit", "0"], "'0'"),
        (["--chains", "1024,x"], "'x'"),
        (["--budgets", "0"], "'0'"),
        (["--memory-methods", "h2o"], "h2o"),
        (["--rkv-repo", "nowhere"], "nowhere"),
        (["--kvpress-python", "nowhere"], "nowhere"),
        (["memory", "--memory-tokens", "10"], "--memory-tokens"),
        (["--output", "taken"], "taken"),
    ],
)
def test_bad_options_are_one_line(options, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    assert main(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("reasonalloc: ") and err.count("\n") == 1 and complaint in err


@pytest.fixture
def canned(results, monkeypatch, tmp_path):
    """The command with results that are already there."""
    asked = []
    monkeypatch.chdir(tmp_path)
    for part, data in results.items():
        monkeypatch.setitem(run._RUN, part, lambda settings, log, save, data=data: asked.append(settings) or data)
    return asked


def test_the_command_writes_and_prints(canned, capsys):
    assert main(["bench", "memory", "--output", "new/folder", "--memory-limit", "1.5GB", "--json", "-"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["memory"]
    assert sorted(x.name for x in Path("new/folder").iterdir()) == ["README.md", "memory.json"]
    assert canned[0].memory_limit == 1_500_000_000


def test_the_command_prints_tables(canned, capsys):
    assert main(["bench"]) == 0
    out = capsys.readouterr().out
    assert [x.parts for x in canned] == [("kernels", "throughput", "memory", "kvpress")] * 4
    assert "Targets" in out and "Attention of one decode step" in out
    assert [x.name for x in Path().iterdir()] == ["bench-out"]


@pytest.mark.parametrize(("options", "saved"), [([], True), (["--quick"], False)])
def test_the_default_folder(canned, capsys, options, saved):
    """Results that are published are not written over."""
    Path("benchmarks/results").mkdir(parents=True)
    assert main(["bench", "kernels", *options]) == 0
    assert Path("bench-out/kernels.json").exists() is saved
    assert not list(Path("benchmarks/results").iterdir())


def test_a_killed_part_leaves_what_it_has(monkeypatch, tmp_path, capsys):
    def killed(settings, log, save):
        save({"results": [1]})
        raise KeyboardInterrupt

    monkeypatch.setitem(run._RUN, "memory", killed)
    with contextlib.suppress(KeyboardInterrupt):
        main(["bench", "memory", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "memory.partial.json").read_text()) == {"results": [1]}
    assert not (tmp_path / "memory.json").exists()
