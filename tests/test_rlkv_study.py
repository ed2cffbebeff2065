"""Trained gates as they were committed, how far their rankings agree, and the study that tries them."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from reasonalloc.lab.evaluate.study_file import StudyFile
from reasonalloc.policy.gates import local_heads, read_gates

STUDIES = Path(__file__).parents[1] / "benchmarks" / "studies"
TRAINED = STUDIES.parent / "results" / "rlkv"


@pytest.fixture
def script(monkeypatch, request):
    monkeypatch.syspath_prepend(STUDIES)
    yield importlib.import_module(request.param)
    for name in ("gates", "chains", "checks", request.param):
        sys.modules.pop(name, None)


gates = pytest.mark.parametrize("script", ["gates"], indirect=True)


@pytest.mark.parametrize(
    "path",
    [TRAINED / x for x in ("seed0/adapter_weights.tsv", "seed1/adapter_weights.tsv", "duo/full_attention_heads.tsv")],
    ids=lambda x: x.parent.name,
)
def test_gates_are_those_of_their_run(path):
    said = json.loads(path.with_suffix(".json").read_text())
    log = [json.loads(x) for x in (path.parent / "log.jsonl").read_text().splitlines()]
    found = read_gates(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == said["sha256"] and found.shape == (30, 3)
    assert [x["step"] for x in log] == list(range(1, 61)) and said["steps"] == 60
    assert [x["reward"] for x in log] == said["reward"] and [x["mean_gate"] for x in log] == said["mean_gate"]
    assert log[-1]["mean_gate"] == pytest.approx(found.mean(), abs=1e-6)
    assert log[-1]["sparsity"] == pytest.approx((found < 0.5).mean(), abs=1e-6)


@gates
def test_random_gates_are_drawn_again(script):
    for number in range(script.RANDOM):
        assert (script.read(script.random_file(number)) == script.random_gates(number)).all()


@gates
@pytest.mark.parametrize("sparsity", [0, 0.2, 0.4, 0.5, 0.6, 0.8, 1])
def test_full_heads_are_those_of_the_method(script, sparsity):
    for path in [*script.FILES.values(), script.random_file(0)]:
        table = read_gates(path)
        assert (script.full_heads(table, sparsity) == ~local_heads(table, sparsity).ravel()).all()


@gates
def test_equal_gates_in_random_order(script):
    table = np.array([[0.0, 0.9, 0.0], [0.0, 0.5, 0.0]])
    rng = np.random.default_rng(0)
    drawn = np.array([script.full_heads(table, 0.5, rng) for _ in range(400)])
    assert drawn[:, [1, 4]].all() and (drawn.sum(1) == 3).all()
    assert drawn.mean(0)[[0, 2, 3, 5]] == pytest.approx(0.25, abs=0.1)
    assert script.tied(table, 0.5) == 1 and script.tied(table, 4 / 6) == 0 and script.tied(np.arange(6) / 6, 0.5) == 0


@gates
def test_correlations_are_scipys(script, monkeypatch):
    monkeypatch.setattr(script, "DRAWS", 200)
    rng = np.random.default_rng(3)
    one = rng.integers(0, 4, (10, 3)).astype(float)  # with ties
    for other in (one + rng.normal(0, 1, one.shape), rng.integers(0, 3, one.shape).astype(float)):
        for form, theirs in ((script.spearman, stats.spearmanr), (script.kendall, stats.kendalltau)):
            found, p, _ = script.correlation(form, one, other, np.random.default_rng(0))
            want = theirs(one.ravel(), other.ravel())
            assert found == pytest.approx(want.statistic) and p == pytest.approx(want.pvalue, abs=0.1)


@gates
def test_agreement_of_layers_alone_is_seen_as_that(script, monkeypatch):
    monkeypatch.setattr(script, "DRAWS", 400)
    rng = np.random.default_rng(0)
    layers = np.arange(30.0)[:, None] * 10
    one, other = (layers + rng.random((30, 3)) for _ in range(2))
    _, anywhere, inside = script.correlation(script.spearman, one, other, np.random.default_rng(0))
    assert anywhere < 0.01 and inside > 0.05
    assert script.correlation(script.spearman, one, one, np.random.default_rng(0))[2] < 0.01
    order = script.within_layers((30, 3), rng)
    assert sorted(order) == list(range(90)) and (order // 3 == np.arange(90) // 3).all()


# ---- The study ----

study = pytest.mark.parametrize("script", ["rlkv"], indirect=True)


@study
def test_the_plan_has_the_cells_of_the_script(script, monkeypatch):
    monkeypatch.chdir(STUDIES.parents[1])
    file = StudyFile.load(STUDIES / "rlkv.yaml")
    cells = {x.name: x.config for x in file.made()}
    assert list(cells) == ["full", *(x for sparsity in script.SPARSITIES for x in script.labels_of(sparsity))]
    for sparsity in script.SPARSITIES:
        for label in script.labels_of(sparsity):
            config = cells[label]
            if config.method == "rlkv":
                assert config.options["sparsity"] == sparsity / 100
                assert read_gates(config.options["gates"]).shape == (30, 3)
            else:
                assert config.budget == script.budget_of(sparsity)
                assert bool(config.keep_prompt) == label.split("-" + str(sparsity))[0].endswith("-kept")
    plan = (STUDIES / "rlkv.md").read_text()
    assert ", ".join(str(script.budget_of(x)) for x in script.SPARSITIES[:-1]) in plan


@study
@pytest.mark.parametrize(("folder", "cell"), [("heads", "R-KV 384"), ("heads", "full"), ("prompt", "R-KV-kept 384")])
def test_bytes_by_the_formula_are_those_of_chains(script, folder, cell):
    slot = script.HEADS * 64 * 2 * 2  # keys and values in bfloat16
    for x in importlib.import_module("chains").records(STUDIES.parent / "results" / folder):
        if x["cell"] == cell:
            about = x["prompt_tokens"], x["tokens"]
            found = script.mixed_slots(0, *about) if cell == "full" else script.cut_slots(384, *about)
            assert found * slot == pytest.approx(x["mean_bytes"], rel=0.002)


def chains(folder, cells, checks, problems=24):
    """Of each cell as many right as its rate says; checks: how often a chain checks itself, by cell."""
    folder.mkdir()
    figures = {"finish": "stop", "tokens": 9, "mean_bytes": 1e6, "slots": 9}
    check = "Wait, let me check that again."  # as the task has it
    lines = [
        {
            "cell": cell,
            "item": f"p{i}",
            "right": [i / problems < rate] * 4,
            "text": check * checks.get(cell, 0),
            **figures,
        }
        for cell, rate in cells.items()
        for i in range(problems)
    ]
    (folder / "generations.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return str(folder)


@study
def test_only_whole_sparsities_are_told(script, tmp_path, monkeypatch, capsys):
    rates = {"seed0": 1.0, "seed1": 0.5, "duo": 0.5}
    cells = {"full": 1.0} | {x: rates.get(x.rsplit("-", 1)[0], 0.25) for x in script.labels_of(40)}
    cells |= {x: 0.75 for x in script.labels_of(60)[:-1]}
    monkeypatch.setattr(script, "PROBLEMS", 24)
    monkeypatch.setattr(sys, "argv", ["rlkv.py", chains(tmp_path / "some", cells, {"duo-40": 3})])
    script.main()
    told = capsys.readouterr().out
    assert "sparsity 60 %: 11 of 12 cells are whole, so none is looked at" in told and "seed0-60" not in told
    assert "planned, Holm over 6" in told and told.count(", Holm ") == 1 + len(script.PLANNED)
    assert "40 %: rlkv less random" in told and "+50.0%" in told and "40 %: rlkv less duo" in told and "+25.0%" in told
    assert "40 %: random heads 25.0% to 25.0%" in told
    assert [x.split()[-1] for x in told.splitlines() if x.startswith("  duo-40")][-1] == "3.0"


@pytest.mark.parametrize("script", ["checks"], indirect=True)
def test_checks_of_chains(script, tmp_path, monkeypatch, capsys):
    often = {"full": 5, "seed0-60": 4, "seed1-60": 2, "R-KV-kept-60": 1}
    folder = chains(tmp_path / "some", dict.fromkeys(StudyFile.load(STUDIES / "checks.yaml").cells, 1.0), often)
    monkeypatch.setattr(sys, "argv", ["checks.py", folder])
    script.main()
    told = " ".join(capsys.readouterr().out.split())
    assert "full 5.0 checks a chain" in told and "duo-60 0.0 checks a chain" in told
    assert "rlkv less duo-60 +75.0% [+75.0%, +75.0%]" in told and "full less rlkv +25.0% [+25.0%" in told
    assert "rlkv less R-KV-kept-60 +50.0%" in told
