"""The benchmarks as a whole, at tiny sizes: fields of their results, the report, the command. No times are tested."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path

import benches
import models
import pytest
from benches import Lengths

from reasonalloc.cli import main
from reasonalloc.lab.bench import (
    kernels,
    kvpress_peer,
    memory,
    report,
    run,
    targets,
    throughput,
)
from reasonalloc.lab.bench.progress import silent
from reasonalloc.lab.bench.settings import Settings


@pytest.fixture(scope="module")
def small_machine():
    with benches.small_machine():
        yield


@pytest.fixture(scope="module")
def results(small_machine):
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
        "throughput": throughput.run(settings, silent, given=benches.subject(), share_budgets=(32,)),
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


def test_no_cache_is_above_the_limit(results):
    data = results["throughput"]
    for row in data["equal_memory"]:
        assert row["tried"]
        assert all(x["cache_bytes"] <= data["memory_limit"] and x["rows"] <= 3 for x in row["tried"])


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
    assert main(["bench", "memory", "--output", "new/folder"]) == 0  # its own table is written again
    Path("new/folder/README.md").write_text("# Mine\n")
    capsys.readouterr()
    assert main(["bench", "memory", "--output", "new/folder"]) == 2 and len(canned) == 2
    assert "does not begin with '# Results of `make bench`': take another folder" in capsys.readouterr().err
    assert Path("new/folder/README.md").read_text() == "# Mine\n"


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
