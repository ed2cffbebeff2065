"""Configs of several methods at several sizes, and who of them gets an option."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accuracy import folder, task  # noqa: F401  (fixtures)

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.lab.evaluate.points import points_of

BASE = {"interval": 8}


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    """Of the tiny model of test_accuracy: three layers, two KV heads."""
    path = tmp_path_factory.mktemp("gates") / "gates.tsv"
    path.write_text("\n".join(["0.1\t0.9"] * 3) + "\n")
    return str(path)


def test_methods_with_and_without_a_budget(gates):
    made = points_of(
        ["rlkv", "h2o", "rkv"], [64, 96], [0.1], BASE | {"options": {"gates": gates, "decay": 0.5}}, ["1MB"]
    )
    assert [(x.method, x.budget or x.ratio or x.max_bytes) for x in made] == [
        ("rlkv", None), *((name, size) for name in ("h2o", "rkv") for size in (64, 96, 0.1, "1MB"))
    ]  # fmt: skip
    assert [dict(x.options) for x in made] == [{"gates": gates}, *[{"decay": 0.5}] * 4, *[{}] * 4]
    assert all(x.interval == 8 for x in made)
    borrowed = points_of(["rkv"], [64], [], {"scorer": "h2o", "options": {"decay": 0.5}})
    assert dict(borrowed[0].options) == {"decay": 0.5}


def test_what_is_refused(gates):
    with pytest.raises(ValueError, match=r"none of the methods full, h2o has the option 'gates'; they have .*decay"):
        points_of(["full", "h2o"], [64], [], BASE | {"options": {"gates": gates}})
    with pytest.raises(ValueError, match="needs the file 'gates'"):
        points_of(["rlkv"], [64], [], BASE)
    with pytest.raises(ValueError, match="method 'nosuch' is unknown"):
        points_of(["nosuch"], [64], [], BASE)


def test_gates_on_the_command_line_and_in_python(folder, task, gates, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "accuracy", "--model", folder, "--task", task, "--methods", "full,rlkv,rkv",
               "--budgets", "24", "--max-new-tokens", "20", "--set", f"options.gates={gates}",
               "--json", "found.json"]  # fmt: skip
    assert main(command) == 0
    rows = json.loads(Path("found.json").read_text())["rows"]
    assert [x["cell"] for x in rows] == ["full", "rlkv", "rkv 24"]
    found = ra.evaluate(
        folder, task=task, methods=["full", "rlkv", "rkv"], budgets=[24], max_new_tokens=20, progress=False,
        config={"options": {"gates": gates}},
    )  # fmt: skip
    assert [(x.cell, x.tokens) for x in found.rows] == [(x["cell"], x["tokens"]) for x in rows]
