"""Accuracy: what is planned and resumed; the command on a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accuracy import CELLS, ITEMS, command, elsewhere, folder, task, texts  # noqa: F401  (fixtures)
from models import build

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.hf.decode import Sampling
from reasonalloc.lab.evaluate.accuracy import Cell, cells, plan, run_batch
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.evaluate.workers import Source
from reasonalloc.lab.tasks import Item, items

pytest.importorskip("scipy")
pytest.importorskip("math_verify")


def test_plan():
    batches = plan(ITEMS, CELLS, 2, 4)
    jobs = [(x.cell.name, j.item.id, j.sample) for x in batches for j in x.jobs]
    assert len(jobs) == len(set(jobs)) == 30
    assert [len(x.jobs) for x in batches] == [4, 4, 2] * 3
    left = plan(ITEMS, CELLS, 2, 4, done=jobs[:17])
    assert [(x.cell.name, j.item.id, j.sample) for x in left for j in x.jobs] == jobs[17:]


def test_groups_are_batched_together_in_any_order():
    mixed = [Item(str(i), "w1", ("1",), "ab"[i % 2]) for i in range(8)]
    made = [[j.item.group for j in x.jobs] for x in plan(mixed, CELLS[:1], 1, 3)]
    assert made == [["a", "a", "a"], ["a", "b", "b"], ["b", "b"]]
    assert [x.name for x in cells(["rkv", "rkv"], [24, 24], [], {})] == ["rkv 24"]


def test_a_cell_knows_its_settings():
    one, other = Cell("x", ra.Config(method="rkv", budget=24)), Cell("x", ra.Config(method="rkv", budget=24, alpha=0.2))
    assert one.hash != other.hash and one.hash == Cell("y", ra.Config(method="rkv", budget=24)).hash
    assert [x.name for x in CELLS] == ["full", "rkv 24", "reasonalloc 24"]


def test_a_methods_new_default_is_another_cell(monkeypatch):
    from reasonalloc.methods import METHODS

    (cell,) = cells(["rkv"], [24], [], {})
    before = cell.hash
    assert cells(["rkv"], [24], [], {})[0].hash == before
    monkeypatch.setitem(METHODS.classes, "rkv", METHODS["reasonalloc-route"])
    assert cell.hash != before


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command(folder, task, capsys):  # noqa: F811
    assert main([*command(folder, task), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert [x["cell"] for x in data["rows"]] == ["full", "rkv 24", "streaming 24"]
    assert "Accuracy" in err and "warning" in err
    assert sorted(x.name for x in Path("out").iterdir() if x.suffix) == [
        "accuracy.json", "accuracy.md", "accuracy.png", "generations.jsonl", "runs.json", "settings.json",
    ]  # fmt: skip
    before = Path("out/generations.jsonl").read_bytes()
    assert main(command(folder, task)) == 0  # nothing is done twice
    assert Path("out/generations.jsonl").read_bytes() == before
    assert main([*command(folder, task), "--seed", "1"]) == 2
    assert "seed 0, now 1" in capsys.readouterr().err
    assert Path("out/generations.jsonl").read_bytes() == before


def test_packed_generations_are_gone_on_from(folder, task, capsys):  # noqa: F811
    assert main([*command(folder, task), "--pack"]) == 0
    path = Path("out/generations.jsonl")
    before = path.read_bytes()
    path.unlink()  # as in a clone, where only what was packed is kept
    assert main([*command(folder, task), "--seed", "1"]) == 2
    assert "seed 0, now 1" in capsys.readouterr().err and not path.exists()
    assert main(command(folder, task)) == 0
    assert path.read_bytes() == before


def test_a_table_names_the_machine_that_made_the_chains(folder, task):  # noqa: F811
    assert main(command(folder, task)) == 0
    path = Path("out/runs.json")
    (made,) = json.loads(path.read_text())
    assert set(made) == {"command", "created", "machine", "versions", "devices", "differences"}
    assert made["devices"] == ["cpu"]
    path.write_text(path.read_text().replace(made["versions"]["torch"], "9.9"))
    assert main(command(folder, task)) == 0  # makes nothing but the table
    said = json.loads(Path("out/accuracy.json").read_text())["provenance"]
    assert said["versions"]["torch"] == said["runs"][0]["versions"]["torch"] == "9.9"
    assert main([*command(folder, task), "--methods", "snapkv"]) == 0
    assert [x["versions"]["torch"] for x in json.loads(path.read_text())] == ["9.9", made["versions"]["torch"]]
    Path("out/generations.jsonl").unlink()
    assert main([*command(folder, task), "--device-map", "cuda:99"]) == 2
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{}")
    assert main([*command(folder, task), "--model", "broken"]) == 2  # a run that makes nothing is none
    assert not path.exists()


def test_samples(folder, task):  # noqa: F811
    assert main([*command(folder, task), "--samples", "2", "--temperature", "0.8"]) == 0
    assert len(texts()) == 30


def test_bad_options(folder, task, capsys):  # noqa: F811
    for more, told in [
        (["--samples", "2"], "temperature"),
        (["--methods", "nosuch"], "nosuch"),
        (["--settings", "plain"], "ledger"),
        (["--device-map", "cuda:99"], "auto and cpu"),
        (["--budgets", "8"], "window"),
        (["--model", "./nothing"], "not a folder with a config.json"),
        (["--model", "./nothing", "--dry-run"], "not a folder with a config.json"),
    ]:
        assert main([*command(folder, task), *more]) == 2
        assert told in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on(folder, task):  # noqa: F811
    """Killed at several moments: in the end every chain is there once, as in a run that was left alone."""
    arguments = [sys.executable, "-m", "reasonalloc", *command(folder, task, output="killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ra.__file__).parents[1])}
    lines = Path("killed/generations.jsonl")
    for count in (1, 6, 11):
        process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not lines.exists() or lines.read_bytes().count(b"\n") < count):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(command(folder, task, output="killed")) == 0
    assert main(command(folder, task)) == 0
    assert texts("killed") == texts("out")
    assert lines.read_bytes().count(b"\n") == 15


def test_a_changed_problem_or_model_is_noticed(folder, task, tmp_path, capsys):  # noqa: F811
    own, model = tmp_path / "changing.jsonl", tmp_path / "model"
    shutil.copy(task, own)
    shutil.copytree(folder, model)
    arguments = [*command(str(model), str(own)), "--fraction", "0.4"]
    assert main(arguments) == 0
    before = Path("out/generations.jsonl").read_bytes()
    own.write_text(own.read_text().replace('"1"', '"2"'))
    assert main(arguments) == 2
    assert "was another problem" in capsys.readouterr().err
    shutil.copy(task, own)
    other = build("llama", eos_token_id=1)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(model)
    assert main(arguments) == 2
    assert "weights" in capsys.readouterr().err
    assert Path("out/generations.jsonl").read_bytes() == before


def test_grading_again(folder, task, capsys):  # noqa: F811
    assert main(command(folder, task)) == 0
    path = Path("out/generations.jsonl")
    before = path.read_bytes()
    rows = [json.loads(x) for x in before.splitlines()]
    path.write_text("".join(json.dumps(x | {"right": [not y for y in x["right"]]}) + "\n" for x in rows))
    assert main([*command(folder, task), "--regrade"]) == 0
    assert [json.loads(x) for x in path.read_bytes().splitlines()] == rows
    assert path.read_bytes() == before


def test_a_wave_of_another_model_is_refused(folder, task):  # noqa: F811
    asked = items(task)
    study = Study(Path("out"), Source(folder), task, asked, Sampling(max_new_tokens=8))
    study.waves.tokens = 8
    study.records.open(study.settings)
    study.waves.get(1)
    again = Study(Path("out"), Source(folder, "bfloat16"), task, asked, Sampling(max_new_tokens=8))
    again.waves.tokens = 8
    with pytest.raises(ValueError, match="measured with dtype 'float32', now 'bfloat16'"):
        again.waves.get(1)


def test_accelerate_places_the_model(folder):  # noqa: F811
    pytest.importorskip("accelerate")
    (batch,) = plan(ITEMS[:1], cells(["rkv"], [24], [], {"interval": 8}), 1, 1)
    texts = [[x.text for x in run_batch(*m[:2], batch, Sampling(max_new_tokens=30))]
             for m in (Source(folder).load(), Source(folder, device_map="cpu").load())]  # fmt: skip
    assert texts[0] == texts[1]


def test_a_mistyped_model_leaves_the_folder_usable(folder, task, capsys):  # noqa: F811
    assert main(command("./nosuch", task)) == 2
    assert main(command(folder, task)) == 0
