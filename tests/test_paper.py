"""benchmarks/paper.py on a tiny model: tables, packed generations, published figures beside ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_accuracy import folder  # noqa: F401  (fixture)

from reasonalloc.lab.evaluate.records import read

pytest.importorskip("scipy")
pytest.importorskip("math_verify")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import paper


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
    assert paper.main(arguments) == 0
    text = Path("out/README.md").read_text()
    assert "| reasonalloc |" in text and "61.4%" in text and "Tokens/s with wave and routing" in text
    assert "Warning" in text  # nothing is known of this model
    assert "the prompt is treated as each method has it" in text
    rows = json.loads(Path("out/math500.json").read_text())["rows"]
    assert [x["cell"] for x in rows][:3] == ["full", "reasonalloc 128", "reasonalloc 160"]
    assert len(list(read("out/math500.jsonl.gz"))) == 5 * 4
    before = Path("out/raw/math500/generations.jsonl").read_bytes()
    assert paper.main(arguments) == 0
    assert Path("out/raw/math500/generations.jsonl").read_bytes() == before


def test_what_cannot_be_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REASONALLOC_DATA", str(tmp_path))
    for arguments, told in [
        (["--model", "x", "--problems", "501", "--tasks", "math500"], "500"),
        (["--tasks", "gsm8k"], "math500, aime24"),
    ]:
        with pytest.raises(SystemExit) as stop:
            paper.main(arguments)
        assert stop.value.code == 2 and told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_planned(monkeypatch):
    made = []
    monkeypatch.setattr(paper, "run", lambda args, _: made.extend(paper.plans(args)))
    for arguments in ([], ["--quick"], ["--model", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"]):
        assert paper.main(arguments) == 0
    full, quick, *real = made
    assert full.task == quick.task == "ledger" and quick.problems < full.problems
    assert [(x.task, x.samples, x.sampling.temperature) for x in real] == [("math500", 8, 0.6), ("aime24", 8, 0.6)]
