"""`reasonalloc paper` on a tiny model: tables, packed generations, published figures beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accuracy import folder  # noqa: F401  (fixture)

from reasonalloc.cli import main, paper
from reasonalloc.cli import parser as command_line
from reasonalloc.lab import tasks
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
    Path("out/README.md").write_text("# Mine\n")
    assert main(["paper", *arguments]) == 2 and Path("out/README.md").read_text() == "# Mine\n"


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
    assert [(x.task, x.samples, x.temperature) for x in real] == [("math500", 8, 0.6), ("aime24", 8, 0.6)]


def test_options_change_the_study():
    given = ["--methods", "full,RKV", "--budgets", "100", "--problems", "3", "--samples", "4", "--seed", "7"]
    (plan,) = paper.plans(arguments(*given, "--drop-prompt", "--set", "interval=64", "--max-new-tokens", "50"))
    cells = {x.name: x.config for x in plan.made()}
    assert list(cells) == ["full", "rkv 100"] and cells["rkv 100"].interval == 64
    assert (plan.problems, plan.samples, plan.seed, plan.max_new_tokens) == (3, 1, 7, 50)  # it answers greedily
    assert cells["rkv 100"].keep_prompt is False and paper.plans(arguments())[0].config["keep_prompt"] is True
    real = paper.plans(arguments("--model", "x/y", "--samples", "2", "--tasks", "aime24", "--set", "alpha=0.3"))
    assert [(x.task, x.samples, x.model, x.config) for x in real] == [("aime24", 2, "x/y", {"alpha": 0.3})]
    with pytest.raises(ValueError, match="nosuch"):
        paper.plans(arguments("--methods", "nosuch"))[0].made()


def test_the_study_is_what_made_the_published_table():
    """Cells of the same settings, problems of the same text."""
    plan = paper.plans(arguments())[0]
    chains = list(read(Path(__file__).parents[1] / "benchmarks/results/paper/ledger.jsonl.gz"))
    made = {x.cell: x.config for x in chains}
    assert set(made) == {x.name for x in plan.made()}
    own = {x.name: x.hash for x in plan.made() if not x.config.resolve().needs_wave}
    assert own == {name: made[name] for name in own} and len(own) > 5
    asked = {x.id: x.hash for x in tasks.items(plan.task, count=plan.problems, settings=plan.settings)}
    assert asked.items() <= {x.item: x.asked for x in chains}.items()


def test_results_that_are_published_are_not_written_over_by_default():
    folders = [paper.default_folder(arguments(*given)) for given in ([], ["--quick"], ["--model", "owner/Name-8B/"])]
    assert [str(x) for x in folders] == ["paper-ledger-135m", "paper-quick", "paper-Name-8B"]


@pytest.mark.parametrize(
    ("model", "there"), [("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", True), ("some/other", False)]
)
def test_published_figures_stand_beside_those_of_the_same_model_only(model, there):
    plan = paper.plans(arguments("--model", model))[0]
    assert ("paper, b = 128" in paper._grid(plan, Summary([]), model)) == there
