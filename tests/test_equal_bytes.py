"""Budgets of equal mean bytes: the search, what it keeps, and the command."""

from __future__ import annotations

import json

import pytest
from accuracy import command, folder, task  # noqa: F401  (fixtures)

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.lab.evaluate.accuracy import cells
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.evaluate.equal_bytes import FILE, MOST_TRIES, Matcher, matched, search
from reasonalloc.lab.evaluate.records import read
from reasonalloc.lab.evaluate.summary import Summary
from reasonalloc.lab.tasks import items, other_items

BASE = {}


# ---- The search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "target"),
    [
        (lambda b: 1000.0 * b, 64_000.0),
        (lambda b: 1000.0 * b, 900_000.0),
        (lambda b: 700.0 * b + 40_000, 240_000.0),  # a part that no budget changes
        (lambda b: 50.0 * b**1.5, 300_000.0),
        (lambda b: 16_000.0 * -(-b // 16), 512_000.0),  # whole pages
        (lambda b: 1000.0 * b + 3000 * (b % 7 - 3), 300_000.0),  # noise
        (lambda b: 1000.0 * min(b, 60), 45_000.0),  # beyond 60 all is kept
    ],
)
@pytest.mark.parametrize("start", [12.0, 256.0, 4000.0])
def test_the_search_finds_what_there_is(cost, target, start):
    tries = search(cost, target, start, 9, True, 0.02)
    assert len(tries) <= MOST_TRIES
    assert abs(tries[-1].mean_bytes / target - 1) <= 0.02
    assert all(x.size == int(x.size) and x.size >= 9 for x in tries)
    assert all(x.mean_bytes == cost(x.size) for x in tries)
    assert len({x.size for x in tries}) == len(tries)


def test_where_there_is_none_it_ends():
    pages = search(lambda b: 16_000.0 * -(-b // 16), 505_000.0, 100.0, 9, True, 1e-3)
    best = min(pages, key=lambda x: abs(x.mean_bytes - 505_000))
    assert best.mean_bytes == 512_000  # the nearest page
    assert len(search(lambda b: min(b, 80.0), 1000.0, 40.0, 9, True, 0.02)) == 3  # 40, 160, 640: all is kept
    assert [x.size for x in search(lambda b: 500.0, 10.0, 40.0, 9, True, 0.02)] == [40, 10, 9]
    ratios = search(lambda x: 1000 * x, 300.0, 0.9, 1e-3, False, 0.001)
    assert ratios[-1].size == pytest.approx(0.3, rel=0.01)
    assert search(lambda x: 1000 * x, 3000.0, 0.9, 1e-3, False, 0.01)[-1].size == 1.0  # no more than everything


# ---- Problems of the pilot -------------------------------------------------------------------------------------------


def test_a_pilot_has_problems_of_its_own(task):  # noqa: F811
    asked = items("ledger", count=3, settings=["plain"])
    own = {"count": 2, "settings": ["plain"]}
    pilot = other_items("ledger", asked, seed=7, **own)
    assert len(pilot) == 2
    assert not {x.hash for x in pilot} & {x.hash for x in asked}
    assert pilot == other_items("ledger", asked, seed=7, **own) != other_items("ledger", asked, seed=8, **own)
    asked = items("math500", count=490)
    pilot = other_items("math500", asked, count=10, seed=7)
    assert len(pilot) == 10 and not {x.id for x in pilot} & {x.id for x in asked}
    assert len(other_items("math500", asked[:200], count=None, seed=7)) == 200
    assert len(other_items(task, items(task), count=3, seed=7)) == 3  # a file has no others


# ---- Cells -----------------------------------------------------------------------------------------------------------


def matcher(tmp_path, costs, asked, **changes):
    def measure(cell):
        asked.append((cell.config.method, cell.config.budget or cell.config.ratio))
        return costs[cell.config.method] * asked[-1][1]

    options = {"measure": measure, "pilot": items("ledger", count=1, settings=["plain"]), "folder": tmp_path}
    return Matcher(**{**options, "about": {"seed": 1}, "tolerance": 0.01, **changes})


def test_all_methods_at_the_bytes_of_one(tmp_path):
    asked: list = []
    wanted = cells(["full", "rkv", "snapkv", "random"], [64, 128], [], BASE)
    costs = {"rkv": 1000.0, "snapkv": 500.0, "random": 1600.0}
    found, matches = matched(matcher(tmp_path, costs, asked), "rkv", wanted)
    assert [x.name for x in found] == [
        "full", "rkv 64", "rkv 128", "snapkv 64@rkv", "snapkv 128@rkv", "random 64@rkv", "random 128@rkv"
    ]  # fmt: skip
    assert [x.config.budget for x in found] == [None, 64, 128, 128, 256, 40, 80]
    assert all(abs(x.off) <= 0.01 and x.within for x in matches)
    assert [x.target for x in matches] == [64e3, 64e3, 128e3, 128e3] or len(matches) == 4
    again: list = []
    same, _ = matched(matcher(tmp_path, costs, again), "rkv", wanted)
    assert same == found and not again  # from the file
    changed = {"keep_prompt": True}
    for changes in ({"about": {"seed": 2}}, {"pilot": items("ledger", count=2, settings=["plain"])}):
        again.clear()
        matched(matcher(tmp_path, costs, again, **changes), "rkv", wanted)
        assert again  # of another pilot
    again.clear()
    matched(matcher(tmp_path, costs, again), "rkv", cells(["rkv", "snapkv"], [64], [], changed))
    assert again
    (tmp_path / FILE).write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="not a list of matched budgets"):
        matcher(tmp_path, costs, asked)


def test_cells_of_one_method(tmp_path):
    """They are told apart by their labels; one whose name says no size stays."""

    def measure(cell):
        return cell.config.budget * {"short": 1000.0, "long": 1500.0}[cell.label]

    def made(label, interval, budget=64):
        return Cell(f"{label} {budget}", ra.Config(method="rkv", budget=budget, interval=interval))

    own = Cell("own", ra.Config(method="rkv", ratio=0.1))
    found, _ = matched(
        matcher(tmp_path, {}, [], measure=measure),
        "long",
        [made("short", 16), own, made("long", 128), made("long", 128, 96)],
    )
    assert [x.name for x in found] == ["short 64@long", "short 96@long", "own", "long 64", "long 96"]
    assert [x.config.budget for x in found] == [96, 144, None, 64, 96]
    assert [x.config.interval for x in found if x != own] == [16, 16, 128, 128] and own in found


def test_ratios_and_sizes(tmp_path):
    asked: list = []
    costs = {"rkv": 1000.0, "snapkv": 500.0}
    found, _ = matched(matcher(tmp_path, costs, asked), "rkv", cells(["snapkv", "rkv"], [], [0.2], BASE))
    assert [x.name for x in found] == ["snapkv 0.2x@rkv", "rkv 0.2x"]
    assert found[0].config.ratio == pytest.approx(0.4, rel=0.01) and found[0].config.budget is None
    found, matches = matched(
        matcher(tmp_path, costs, asked), "0.2 MB", cells(["full", "rkv", "snapkv"], [64], [], BASE)
    )
    assert [x.name for x in found] == ["full", "rkv 0.2MB", "snapkv 0.2MB"]
    assert [x.config.budget for x in found[1:]] == [200, 400]
    assert {x.target for x in matches} == {2e5}
    with pytest.raises(ValueError, match="keeps every token"):
        matched(matcher(tmp_path, costs, asked), "full", cells(["full", "rkv"], [64], [], BASE))
    alone = cells(["full"], [], [], BASE)
    assert matched(matcher(tmp_path, costs, asked), "0.2MB", alone) == (alone, [])


# ---- The command -----------------------------------------------------------------------------------------------------


def test_the_command(folder, task, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    more = ("--equal-bytes", "rkv", "--pilot", "2", "--tolerance", "0.05", "--json", str(tmp_path / "o.json"))
    arguments = [*command(folder, task, *more, output=str(out))]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "are among those evaluated" in said and "equal mean bytes" in said
    summary = Summary.load(out / "accuracy.json")
    assert [x.cell for x in summary.rows] == ["full", "rkv 24", "streaming 24@rkv"]
    rkv, streaming = summary.rows[1:]
    matches = summary.provenance["equal_bytes"]
    assert [x["cell"] for x in matches] == ["streaming 24@rkv"]
    assert streaming.budget == matches[0]["size"] == 24  # cut when rkv is cut, it holds as much
    assert streaming.size == f"{streaming.budget} (24@rkv)" and rkv.size == "24"
    assert [x.against for x in streaming.against] == ["full", "rkv 24"]
    assert abs(streaming.mean_bytes / rkv.mean_bytes - 1) < 0.2  # on other problems, of few tokens
    assert json.loads((tmp_path / "o.json").read_text())["rows"][2]["mean_bytes"] == streaming.mean_bytes
    assert f"{streaming.budget} (24@rkv)" in (out / "accuracy.md").read_text()
    made = list(read(out / "generations.jsonl"))
    assert {x.cell for x in made} == {"full", "rkv 24", "streaming 24@rkv"}  # the pilot's chains are not among them
    assert main(arguments) == 0  # goes on: nothing is searched or made again
    assert "takes" not in capsys.readouterr().out
    assert list(read(out / "generations.jsonl")) == made


def test_the_command_with_a_size(folder, task, tmp_path, capsys):  # noqa: F811
    """More bytes than 24 slots take; methods that find their budgets by it hold about as much."""
    out, size = tmp_path / "out", "10KB"
    options = [x for x in command(folder, task, output=str(out)) if x not in ("--budgets", "24")]
    assert main([*options, "--equal-bytes", size, "--pilot", "3", "--tolerance", "0.1"]) == 0
    summary = Summary.load(out / "accuracy.json")
    assert [x.cell for x in summary.rows] == ["full", f"rkv {size}", f"streaming {size}"]
    assert "not within" not in capsys.readouterr().out
    for match in summary.provenance["equal_bytes"]:
        assert match["target"] == 10_000
        assert abs(match["mean_bytes"] / 10_000 - 1) <= 0.1
    assert summary.rows[2].against[1].against == f"rkv {size}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--equal-bytes", "snapkv"], "none of --methods"),
        (["--equal-bytes", "nonsense"], "takes one of adakv"),
        (["--equal-bytes", "1MB", "--budgets", "64"], "give no --budgets"),
        (["--equal-bytes", "full"], "keeps every token"),
    ],
)
def test_what_the_command_refuses(folder, task, tmp_path, capsys, more, message):  # noqa: F811
    assert main(command(folder, task, *more, output=str(tmp_path / "out"))) != 0
    assert message in capsys.readouterr().err
