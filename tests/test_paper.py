"""`reasonalloc paper` on a tiny model: tables, packed generations, published figures beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_accuracy import folder  # noqa: F401  (fixture)

from reasonalloc.cli import main, paper
from reasonalloc.cli import parser as command_line
from reasonalloc.lab.evaluate.records import read
from reasonalloc.lab.evaluate.summary import Summary

pytest.importorskip("scipy")
pytest.importorskip("math_verify")
pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_a_table(folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", folder, "--dtype", "float32", "--tasks", "math500", "--problems", "2", "--samples", "2"]
    arguments += [
        "--methods",
        "full,reasonalloc,rkv",
        "--budgets",
        "128,160",
        "--max-new-tokens",
        "40",
        "--output",
        "out",
    ]
    assert main(["paper", *arguments]) == 0
    text = Path("out/README.md").read_text()
    assert "| reasonalloc |" in text and "61.4" not in text and "Tokens/s with wave and routing" in text
    assert "Warning" in text  # nothing is known of this model
    assert "the prompt is treated as each method has it" in text
    rows = json.loads(Path("out/math500.json").read_text())["rows"]
    assert [x["cell"] for x in rows][:3] == ["full", "reasonalloc 128", "reasonalloc 160"]
    assert len(list(read("out/math500.jsonl.gz"))) == 5 * 4
    before = Path("out/raw/math500/generations.jsonl").read_bytes()
    assert main(["paper", *arguments]) == 0
    assert Path("out/raw/math500/generations.jsonl").read_bytes() == before


def test_what_cannot_be_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REASONALLOC_DATA", str(tmp_path))
    for arguments, told in [
        (["--model", "x", "--problems", "501", "--tasks", "math500"], "500"),
        (["--tasks", "gsm8k"], "math500, aime24"),
    ]:
        assert main(["paper", *arguments]) == 2
        assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def arguments(*given):
    return command_line().parse_args(["paper", *given])


def test_what_is_planned():
    full, quick, *real = [
        plan
        for given in ([], ["--quick"], ["--model", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"])
        for plan in paper.plans(arguments(*given))
    ]
    assert full.task == quick.task == "ledger" and quick.problems < full.problems
    assert [(x.task, x.samples, x.sampling.temperature) for x in real] == [("math500", 8, 0.6), ("aime24", 8, 0.6)]


def test_results_that_are_published_are_not_written_over_by_default():
    folders = [paper.default_folder(arguments(*given)) for given in ([], ["--quick"], ["--model", "owner/Name-8B/"])]
    assert [str(x) for x in folders] == ["paper-ledger-135m", "paper-quick", "paper-Name-8B"]


@pytest.mark.parametrize(
    ("model", "there"), [("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", True), ("some/other", False)]
)
def test_published_figures_stand_beside_those_of_the_same_model_only(model, there):
    plan = paper.plans(arguments("--model", model))[0]
    assert ("paper, b = 128" in paper._grid(plan, Summary([]), model)) == there
