"""Study files: what they say, what is refused, and the command that runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from accuracy import folder, record, task  # noqa: F401  (fixtures)

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.lab.evaluate.statistics import holm, permutation_test
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.evaluate.study_file import StudyFile, section, shipped
from reasonalloc.lab.evaluate.summary import summarise

pytest.importorskip("scipy")
pytest.importorskip("math_verify")
yaml = pytest.importorskip("yaml")

GOOD = {
    "name": "small",
    "question": "Is more more?",
    "budgets": [24, 32],
    "config": {"interval": 8, "window": 4},
    "cells": {
        "full": {"method": "full"},
        "R-KV": {"method": "rkv"},
        "kept": {"method": "rkv", "keep_prompt": True},
        "tenth": {"method": "snapkv", "ratio": 0.1},
    },
    "comparisons": [["kept", "R-KV"], ["R-KV", "full"], ["tenth", "R-KV"]],
}


def write(path, data):
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def test_cells_at_every_budget(tmp_path):
    file = StudyFile.load(write(tmp_path / "a.yaml", GOOD))
    made = {x.name: x.config for x in file.made()}
    assert list(made) == ["full", "R-KV 24", "R-KV 32", "kept 24", "kept 32", "tenth"]
    assert made["kept 32"] == ra.Config(method="rkv", budget=32, keep_prompt=True, interval=8, window=4)
    assert made["tenth"].budget is None and made["tenth"].ratio == 0.1 and made["full"].budget is None


def test_a_method_without_a_size_is_one_cell(tmp_path):
    (tmp_path / "gates.tsv").write_text("0.5 0.1\n")
    cells = {"R-KV": {"method": "rkv"}, "RLKV": {"method": "rlkv", "options": {"gates": str(tmp_path / "gates.tsv")}}}
    file = StudyFile.load(write(tmp_path / "a.yaml", GOOD | {"cells": cells, "comparisons": []}))
    assert [x.name for x in file.made()] == ["R-KV 24", "R-KV 32", "RLKV"]


def test_a_part_of_a_file(tmp_path):
    file = StudyFile.load(write(tmp_path / "a.yaml", GOOD))
    part = file.part([32], ["kept", "R-KV"], 5)
    assert [x.name for x in part.made()] == ["R-KV 32", "kept 32"]
    assert [tuple(x) for x in part.comparisons] == [("kept", "R-KV")]
    assert part.batch_size == 5 and part.digest == file.digest
    whole = {x.name: x.hash for x in file.made()}
    assert all(whole[x.name] == x.hash for x in part.made())
    assert file.part() == file and not file.partial and part.partial and not file.part(batch_size=5).partial
    with pytest.raises(ValueError, match="the budgets of small are 24, 32, got 48"):
        file.part([48])
    with pytest.raises(ValueError, match="the cells of small are full, R-KV, kept, tenth, got wave"):
        file.part(cells=["kept", "wave"])


def test_a_wave_beside_the_file(tmp_path):
    wave = ra.WaveProfile((1.0, 2.0), (0, 1), {"model_type": "llama"})
    wave.save(tmp_path / "own.json")
    cells = {"wave": {"method": "reasonalloc-wave"}, "R-KV": {"method": "rkv"}}
    file = StudyFile.load(write(tmp_path / "a.yaml", GOOD | {"cells": cells, "comparisons": [], "wave": "own.json"}))
    made = {x.name: x.config for x in file.made()}
    assert made["wave 24"].profile == wave and made["R-KV 24"].profile is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": {"a b": {"method": "rkv"}}}, "label is one word, got 'a b'"),
        ({"cells": {"a\ud800": {"method": "rkv"}}}, r"label is one word, got 'a\\ud800'"),
        ({"cells": {"a\x1b[2J": {"method": "rkv"}}}, r"label is one word, got 'a\\x1b"),
        ({"name": "ä" * 101}, "at most 200 bytes, got 202: 'ääää"),
        ({"comparisons": [["kept", "nobody"]]}, "comparisons name cells, got 'nobody'; there are full, R-KV, kept"),
        ({"comparisons": [["kept"]]}, "comparisons"),
        ({"problem": 4}, "unknown: 'problem' .there are name, cells, .*problems, seed"),
        ({"problems": 0}, "problems must be a positive whole number, got 0"),
        ({"budgets": [0]}, "budgets positive"),
        ({"seed": "one"}, "seed"),
        ({"equal_bytes": "nobody"}, "equal_bytes names a cell, got 'nobody'; there are full, R-KV, kept, tenth"),
        ({"equal_bytes": "full"}, "made at each of `budgets`, 'full' is not"),
        ({"equal_bytes": "tenth"}, "made at each of `budgets`, 'tenth' is not"),
        ({"equal_bytes": "R-KV", "tolerance": 2}, "tolerance is a share above 0 and below 1, got 2"),
        ({"equal_bytes": "R-KV", "pilot": 0}, "pilot must be a positive whole number, got 0"),
        ({"name": "../up"}, "got '../up'"),
        ({"name": ".."}, r"got '\.\.'"),
        ({"name": "a\0b"}, r"got 'a\\x00b'"),
        ({"name": "settings"}, "settings.json is another file of their folder"),
        ({"name": "equal-bytes"}, "equal-bytes.json is another file"),
        ({"name": "wave-ledger-4-0.93"}, "another file"),
        ({"name": "mu", "ablations": ["mu"], "budgets": [24]}, "the name is that of one of its ablations.*'mu'"),
        ({"budgets": [24, 32, 24]}, "budgets are named once each, got 24 twice"),
        (
            {"comparisons": [["kept", "R-KV"], ["R-KV", "kept"]]},
            "comparisons are named once each, got R-KV and kept tw",
        ),
        ({"comparisons": [["kept", "kept"]]}, "comparisons are of two cells, got 'kept' and itself"),
        ({"cells": {384: {"method": "rkv"}}}, "cells must have texts for keys, got 384 .int.: write it in quotes"),
        ({"cells": {True: {"method": "rkv"}}}, "cells must have texts for keys, got True .bool.: write it in quotes"),
        ({3: 4, "problem": 4}, "it must have texts for keys, got 3 .int."),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"cells": {"odd": {"method": "rkv", "max_bytes": "1MiB"}}}, "the cell 'odd' has max_bytes, which .* share"),
        ({"config": {"max_bytes": "1MiB"}}, "give it one of budget, ratio, or the file equal_bytes"),
        (
            {"cells": {"odd": {"method": "rkv", "budgett": 3}}},
            "'odd' is none: there is no 'budgett' .did you mean 'budget'",
        ),
        ({"cells": {"odd": {"method": "nosuch"}}}, "the cell 'odd' is none: .*nosuch"),
        (
            {"budgets": []},
            "the cell 'R-KV' has no size: give the file `budgets`, or the cell one of budget, ratio",
        ),
        ({"cells": {"odd": {"method": "rkv", "alpha": 7}}}, "the cell 'odd' is none: .*alpha"),
    ],
)
def test_what_is_refused(tmp_path, change, message):
    data = GOOD | ({"comparisons": []} if "cells" in change else {}) | change
    with pytest.raises(ValueError, match=message):
        StudyFile.load(write(tmp_path / "a.yaml", data)).made()


def test_files_that_are_none(tmp_path):
    twice = "name: a\ncells:\n  b: {method: rkv}\n  b: {method: snapkv}\n"
    for text, message in (
        (twice, "is not YAML: 'b' is there twice, in lines 3 and 4"),
        ("name: a\nname: b\n", "'name' is there twice, in lines 1 and 2"),
        ("{name: a, name: b}", "'name' is there twice"),
    ):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            StudyFile.load(tmp_path / "a.yaml")
    deep = "[" * 999, "nested too deep"
    for text, message in (("- a", "is not a study"), ("a: [", "is not YAML"), ("\x00", "is not YAML"), deep):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            StudyFile.load(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="cannot be read"):
        StudyFile.load(tmp_path / "b.yaml")


def chains(cells):
    """Of each cell, of ten problems; the shares of right answers differ."""
    return [record(cell, str(i), (i + 3 * k) % 7 % 3) for k, cell in enumerate(cells) for i in range(10)]


def test_every_comparison_is_one_of_the_family_once(tmp_path):
    """Two cells with sizes of their own are compared once, whatever the budgets are."""
    cells = {"A": {"method": "rkv", "budget": 300}, "B": {"method": "snapkv", "ratio": 0.1}, **GOOD["cells"]}
    pairs = [["A", "B"], ["full", "A"], ["kept", "A"]]
    file = StudyFile.load(write(tmp_path / "a.yaml", GOOD | {"cells": cells, "comparisons": pairs}))
    made = [x.name for x in file.made()]
    found = file.compared(summarise(chains(made), made))
    assert [(x.cell, x.pair.against) for x in found] == [("A", "B"), ("full", "A"), ("kept 24", "A"), ("kept 32", "A")]
    assert [x.pair.holm for x in found] == holm([x.pair.p for x in found]) and file.family == 4
    assert {x.pair.family for x in found} == {4} and "over these 4." in section(found).note


def test_a_part_is_adjusted_for_all_that_was_planned(tmp_path):
    file = StudyFile.load(write(tmp_path / "a.yaml", GOOD))
    made = [x.name for x in file.made()]
    summary = summarise(chains(made), made)
    whole = {(x.cell, x.pair.against): x.pair for x in file.compared(summary)}
    found = file.part([32], ["kept", "R-KV", "full"]).compared(summary)
    assert [(x.cell, x.pair.against) for x in found] == [("kept 32", "R-KV 32"), ("R-KV 32", "full")]
    for x in found:
        full = whole[x.cell, x.pair.against]
        assert x.pair.p == full.p and x.pair.holm >= full.holm and x.pair.family == full.family == 6
    assert [x.pair.holm for x in found] == holm([x.pair.p for x in found], 6)
    assert "Holm's over all 6 that are planned" in section(found).note


def interrupted(*_):
    raise KeyboardInterrupt


def test_the_command(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    more = {"model": folder, "task": task, "max_new_tokens": 20, "batch_size": 4, "seed": 3}
    write(tmp_path / "small.yaml", GOOD | more)
    assert main(["study", "run", "small.yaml", "--dry-run", "--json", "-"]) == 0
    assert not Path("studies-out").exists()
    assert main(["study", "run", "small.yaml", "--pack", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out.split("\n}\n", 1)[1])
    rows = {x["cell"]: x for x in found["rows"]}
    assert list(rows) == ["full", "R-KV 24", "R-KV 32", "kept 24", "kept 32", "tenth"]
    pairs = found["comparisons"]
    assert [(x["cell"], x["against"]) for x in pairs] == [
        ("kept 24", "R-KV 24"), ("kept 32", "R-KV 32"), ("R-KV 24", "full"), ("R-KV 32", "full"),
        ("tenth", "R-KV 24"), ("tenth", "R-KV 32"),
    ]  # fmt: skip
    for x in pairs:
        ours, theirs = rows[x["cell"]]["scores"], rows[x["against"]]["scores"]
        difference = [ours[i] - theirs[i] for i in ours]
        assert x["difference"]["mean"] == pytest.approx(np.mean(difference)) and x["p"] == permutation_test(difference)
    assert [x["holm"] for x in pairs] == holm([x["p"] for x in pairs]) and pairs[0]["family"] == 6
    out = Path("studies-out/small")
    assert {"small.json", "small.md", "small.png", "small-comparisons.json", "generations.jsonl.gz"} <= {
        x.name for x in out.iterdir()
    }
    assert "Comparisons of the plan" in (out / "small.md").read_text()
    assert found["provenance"]["study"] == "small.yaml" and len(found["provenance"]["study_sha256"]) == 64
    lines = (out / "generations.jsonl").read_bytes()
    tables = {x: x.read_bytes() for x in out.glob("small*")}
    assert main(["study", "run", "small.yaml", "--budgets", "24", "--cells", "kept,R-KV", "--json", "part.json"]) == 0
    part = json.loads(Path("part.json").read_text())
    assert [x["family"] for x in part["comparisons"]] == [6] and "comparisons_planned" in part["provenance"]["part"]
    assert main(["study", "run", "small.yaml", "--cells", "full"]) == 0  # no comparison is left
    assert all(x.read_bytes() == data for x, data in tables.items())
    assert "a part of the study small" in (out / "small-part.md").read_text()
    assert json.loads((out / "small-part-comparisons.json").read_text())["comparisons"] == part["comparisons"]
    capsys.readouterr()
    assert main(["study", "run", "small.yaml"]) == 0 and (out / "generations.jsonl").read_bytes() == lines
    assert f"table and picture: {out}/small.md, .json and .png; chains: {out}\n" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(Study, "run", interrupted)
        assert main(["study", "run", "small.yaml"]) == 130
    made = len(lines.splitlines())
    assert f"{made} chains are kept in {out}: the same command goes on from there" in capsys.readouterr().out
    write(tmp_path / "small.yaml", GOOD | more | {"seed": 4})
    assert main(["study", "run", "small.yaml", "--dry-run"]) == 2
    assert "other settings (seed 3, now 4): take another folder" in capsys.readouterr().err
    assert main(["study", "run", "small.yaml"]) == 2 and "take another folder" in capsys.readouterr().err


def test_the_command_at_equal_bytes(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    """`tenth` has a size of its own, and stays."""
    monkeypatch.chdir(tmp_path)
    more = {"model": folder, "task": task, "max_new_tokens": 120, "batch_size": 4, "equal_bytes": "R-KV"}
    more |= {"tolerance": 0.05, "config": {"interval": 16, "window": 4}, "budgets": [24]}
    more |= {"comparisons": [["newest", "R-KV"], ["tenth", "R-KV"]]}
    cells = {"newest": {"method": "streaming", "interval": 1}, **GOOD["cells"]}
    write(tmp_path / "small.yaml", GOOD | more | {"cells": cells})
    assert main(["study", "run", "small.yaml", "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    rows = {x["cell"]: x for x in found["rows"]}
    assert list(rows) == ["newest 24@R-KV", "full", "R-KV 24", "kept 24@R-KV", "tenth"]
    assert [(x["cell"], x["against"]) for x in found["comparisons"]] == [
        ("newest 24@R-KV", "R-KV 24"), ("tenth", "R-KV 24"),
    ]  # fmt: skip
    matches = {x["cell"]: x for x in found["provenance"]["equal_bytes"]}
    assert list(matches) == ["newest 24@R-KV", "kept 24@R-KV"]
    for name, match in matches.items():
        assert rows[name]["budget"] == match["size"] and match["target"] == matches["kept 24@R-KV"]["target"]
    capsys.readouterr()
    assert main(["study", "run", "small.yaml"]) == 0  # goes on: nothing is searched again
    assert "takes" not in capsys.readouterr().out
    assert main(["study", "run", "small.yaml", "--cells", "kept"]) == 2
    assert "take as many bytes as R-KV: name that too" in capsys.readouterr().err


def test_the_example_of_the_docs(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    data = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    file = StudyFile.load(write(tmp_path / "example.yaml", data))
    assert [x.name for x in file.made()] == ["full", "R-KV 384", "wave 384", "wave-spared 384"]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "benchmarks" / "studies").glob("*.yaml")), ids=str
)
def test_the_studies_of_the_benchmarks(path, monkeypatch):
    monkeypatch.chdir(path.parents[2])
    file = StudyFile.load(path)
    assert file.made() and file.comparisons and file.name == path.stem
    seeds = Path("benchmarks/seeds.md").read_text()
    assert f"| {file.seed} | [studies/{file.name}]" in seeds


@pytest.mark.parametrize("name", shipped())
def test_studies_that_come_with_the_package(name, capsys):
    file = StudyFile.load(name)
    assert file.name == name and file.question
    cells = [*file.made(), *(x for _, found in file.ablated(Notched()) for x in found)]
    assert len({x.name for x in cells}) >= 4
    assert main(["study", "show", name]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == name


def test_studies_are_listed(tmp_path, monkeypatch, capsys):
    assert main(["study", "show"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in shipped()) and {"ablations", "paper-math500"} <= set(shipped())
    assert main(["study", "show", "nosuch"]) == 2 and "there are ablations, paper-" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)  # a file of one's own comes first
    write(tmp_path / "ablations", GOOD)
    assert StudyFile.load("ablations").name == "small"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ablations": ["nosuch"]}, "ablations are among alpha, .*got 'nosuch'"),
        ({"ablations": ["mu"], "budgets": [24, 32]}, "around one of `budgets`"),
        ({"ablations": ["mu"], "wave": "own.json"}, "no `wave`"),
        ({}, "neither cells nor ablations"),
    ],
)
def test_ablations_that_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        StudyFile.load(write(tmp_path / "a.yaml", {"name": "small", "budgets": [24]} | change))


@pytest.mark.slow
def test_ablations_in_a_file_are_those_of_the_command(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    data = {"name": "own", "model": folder, "task": task, "max_new_tokens": 20, "batch_size": 4, "budgets": [24]}
    data |= {"config": {"interval": 8, "window": 4}, "ablations": ["mu", "parts"]}
    write(tmp_path / "own.yaml", data)
    assert main(["study", "run", "own.yaml", "--dry-run", "--json", "-"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["studies"]
    assert main(["study", "run", "own.yaml", "--json", "out.json"]) == 0
    for name in ("mu", "parts"):
        assert main(["ablate", name, "--model", folder, "--task", task, "--max-new-tokens", "20", "--batch-size", "4",
                     "--budget", "24", "--interval", "8", "--set", "window=4", "--output", "by-name"]) == 0  # fmt: skip
    tables = json.loads(Path("out.json").read_text())["tables"]
    assert list(tables) == ["mu", "parts"]
    for name, table in tables.items():
        rows = json.loads(Path(f"by-name/{name}.json").read_text())["rows"]
        assert [(x["cell"], x["scores"], x["tokens"]) for x in rows] == [
            (x["cell"], x["scores"], x["tokens"]) for x in table["rows"]
        ]  # fmt: skip
        assert Path(f"studies-out/own/{name}.png").is_file()
    chains = Path("studies-out/own/generations.jsonl").read_text().splitlines()
    assert planned["chains"] == len(chains) == 5 * len({x["cell"] for t in tables.values() for x in t["rows"]})


class Notched:
    """Stands in for measured waves: one with a layer of next to nothing."""

    task = "ledger"

    def get(self, count=4, rho=0.93, **other):
        about = {"task": other.get("task") or self.task, "count": count}
        return ra.WaveProfile((100.0, 1.0, 300.0, 200.0), (0, 1, 2, 3), about, rho)
