"""What is published is read as it was written, by the readers of today."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from reasonalloc import WaveProfile
from reasonalloc.lab.bench import report
from reasonalloc.lab.evaluate import Fidelity
from reasonalloc.lab.evaluate.records import read
from reasonalloc.lab.evaluate.summary import Summary

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
KINDS = {Summary: {"rows", "warnings"}, Fidelity: {"points", "full_nll"}, WaveProfile: {"demand", "rho"}}


def kind_of(data):
    return next((kind for kind, names in KINDS.items() if isinstance(data, dict) and names <= set(data)), None)


FILES = {path: kind for path in sorted(RESULTS.rglob("*.json")) if (kind := kind_of(json.loads(path.read_bytes())))}


def test_all_kinds_are_there():
    assert set(FILES.values()) == set(KINDS)


@pytest.mark.parametrize("path", FILES, ids=lambda x: str(x.relative_to(RESULTS)))
def test_results(path):
    found = FILES[path].load(path)
    own, written = json.loads(json.dumps(asdict(found))), json.loads(path.read_text(encoding="utf-8"))
    if path == RESULTS / "fidelity.json":  # what was not there when it was made
        assert own.pop("differences") == []
        for point in own["points"]:
            assert point.pop("max_bytes") is None and point.pop("variant") == ""
    assert own == written


SMALL = {
    "h2o": 48,
    "kernel": 144,
    "newer": 216,
    "recent": 144,
    "recency": 144,
    "search": 168,
    "search-budgets": 144,
    "shares": 96,
}  # chains of the studies that have few: cells times problems


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.jsonl.gz")), ids=lambda x: str(x.relative_to(RESULTS)))
def test_generations(path):
    chains = len(list(read(path)))
    assert chains == SMALL.get(path.parent.name, chains) and (chains > 300 or path.parent.name in SMALL)


def test_benchmarks():
    assert report.load(RESULTS)[1] == []


@pytest.mark.slow
def test_every_table_follows_from_its_chains():
    """By a script that imports nothing of the package; a figure that was changed by hand is found."""
    script = RESULTS.parent / "recompute.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" chains\n") >= 15


def test_a_figure_that_does_not_follow_is_found(tmp_path):
    for name in ("parts.json", "generations.jsonl.gz"):
        shutil.copy(RESULTS / "ablations" / name, tmp_path / name)
    table = json.loads((tmp_path / "parts.json").read_text())
    table["rows"][1]["accuracy"]["mean"] += 0.001
    (tmp_path / "parts.json").write_text(json.dumps(table))
    script = RESULTS.parent / "recompute.py"
    done = subprocess.run([sys.executable, script, tmp_path / "parts.json"], capture_output=True, text=True)
    assert done.returncode == 1 and "rkv 384, accuracy is" in done.stderr and done.stderr.count("\n") == 1


def test_planned_comparisons_follow_from_the_chains(tmp_path):
    """Of a study: a difference or Holm's p that was changed by hand is found."""
    for name in ("heads.json", "heads-comparisons.json", "generations.jsonl.gz"):
        shutil.copy(RESULTS / "heads" / name, tmp_path / name)
    script = RESULTS.parent / "recompute.py"
    done = subprocess.run([sys.executable, script, tmp_path / "heads.json"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("of 3\n") == 3, done.stderr
    plan = json.loads((tmp_path / "heads-comparisons.json").read_text())
    plan["comparisons"][0]["difference"]["mean"] += 0.001
    plan["comparisons"][1]["holm"] /= 2
    (tmp_path / "heads-comparisons.json").write_text(json.dumps(plan))
    done = subprocess.run([sys.executable, script, tmp_path / "heads.json"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 2
    assert "heads 384 less R-KV 384 is" in done.stderr and "wave-heads 384 less wave 384, Holm's p is" in done.stderr


def test_a_budget_in_part_is_not_told(tmp_path):
    """Of the sealed comparison, though all of its cells have equally many chains."""
    script, told = RESULTS.parent / "studies" / "evidence.py", Counter()
    text, lines = gzip.decompress((RESULTS / "evidence" / "generations.jsonl.gz").read_bytes()).decode(), []
    for line in text.splitlines(keepends=True):
        cell = json.loads(line)["cell"]
        told[cell] += 1
        if cell.endswith(" 384") or (cell.endswith(" 512") and told[cell] <= 8):
            lines.append(line)
    folder = tmp_path / "evidence"  # whose name says which plan it is
    folder.mkdir()
    (folder / "generations.jsonl").write_text("".join(lines), encoding="utf-8")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=True)
    assert "512 slots: 0 of 16 cells are whole" in done.stdout and " 512 " not in done.stdout.replace("512 slots:", "")
    assert "wave-kept 384 less R-KV-kept 384" in done.stdout


def test_of_searches_one_budget_is_told():
    """768 slots; the two others have not been begun."""
    script = RESULTS.parent / "studies" / "evidence.py"
    done = subprocess.run(
        [sys.executable, script, RESULTS / "evidence-search"], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert [x[:3] for x in lines if x.endswith(" cells are whole, so none is looked at")] == ["640", "896"]
    assert sum(", Holm " in x and " 768 less " in x for x in lines) == 6
