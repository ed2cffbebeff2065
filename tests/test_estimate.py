"""--dry-run: what a study would take, from cells, settings and the model's config alone."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest
from accuracy import folder, task  # noqa: F401  (fixtures)

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.lab.evaluate.estimate import ASSUMED_SPEED, row_bytes
from reasonalloc.lab.models import load, shape

pytest.importorskip("scipy")
pytest.importorskip("math_verify")


def planned(capsys, *arguments):
    assert main([*arguments, "--dry-run", "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)["studies"]


@pytest.fixture
def weightless(monkeypatch, tmp_path):
    """No model may be loaded, and nothing be written."""
    monkeypatch.chdir(tmp_path)

    def refuse(*args, **options):
        raise AssertionError("a dry run loads no weights")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    yield
    assert not [x for x in tmp_path.iterdir() if "out" in x.name]


def test_chains_tokens_and_hours(folder, capsys, weightless):  # noqa: F811
    arguments = ["evaluate", "accuracy", "--model", folder, "--methods", "full,rkv,reasonalloc", "--budgets", "64,128"]
    arguments += ["--task", "math500", "--problems", "10", "--samples", "3", "--temperature", "0.6"]
    (found,) = planned(capsys, *arguments, "--max-new-tokens", "1000", "--speed", "50")
    assert [x["cell"] for x in found["rows"]] == ["full", "rkv 64", "rkv 128", "reasonalloc 64", "reasonalloc 128"]
    assert found["chains"] == 5 * 10 * 3 and found["tokens"] == 150 * 1000
    assert found["hours"] == pytest.approx(150_000 / 50 / 3600)
    (found,) = planned(capsys, *arguments)
    assert found["speed"] == ASSUMED_SPEED and "assumed" in found["speed_from"]


def test_all_ablations_and_the_paper(folder, capsys, weightless):  # noqa: F811
    (found,) = planned(capsys, "ablate", "transfer", "--model", folder, "--budget", "48")
    assert "reasonalloc 48 wave=math500" in [x["cell"] for x in found["rows"]]
    tables = planned(capsys, "paper", "--model", folder, "--tasks", "math500")
    assert [x["task"] for x in tables] == ["math500"]
    assert tables[0]["chains"] == (1 + 7 * 4) * 500 * 8  # users were told nothing of 116,000 chains
    assert tables[0]["rows"][1]["row_bytes"] < tables[0]["rows"][0]["row_bytes"]


def test_what_is_there_is_not_made_again(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    common = ["evaluate", "accuracy", "--model", folder, "--task", task, "--max-new-tokens", "12"]
    assert main([*common, "--methods", "full"]) == 0
    before = {x.name: x.read_bytes() for x in Path("accuracy-out").iterdir()}
    capsys.readouterr()
    (found,) = planned(capsys, *common, "--methods", "full,rkv", "--budgets", "64")
    full, rkv = found["rows"]
    assert full["chains"] == 0 and full["made"] == rkv["chains"] > 0 and full["hours"] == 0
    assert found["speed_from"] == "of the chains in the folder" and found["speed"] > 0
    assert {x.name: x.read_bytes() for x in Path("accuracy-out").iterdir()} == before


def test_a_model_that_is_not_here(capsys, weightless, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (found,) = planned(capsys, "evaluate", "accuracy", "--model", "nobody/nothing", "--task", "math500")
    assert found["rows"][0]["row_bytes"] is None and "nobody/nothing" in found["unknown"]
    assert found["chains"] > 0


@pytest.mark.parametrize(
    "settings", [{"method": "full"}, {"method": "rkv", "budget": 48}, {"method": "rkv", "ratio": 0.5}]
)
def test_bytes_are_about_those_of_a_cache(folder, settings):  # noqa: F811
    model, _, _ = load(folder)
    config = ra.Config(**settings, **({} if settings["method"] == "full" else {"interval": 16}))
    cache = ra.ReasonAllocCache(model, config)
    peak = 0
    for i in range(161):
        models.step(model, cache, models.prompt(40 if i == 0 else 1, seed=i))
        peak = max(peak, cache.stats()["bytes"])
    expected = row_bytes(config, shape(folder), 200, "float32")
    assert 0.8 * expected <= peak <= 1.15 * expected
