"""The task "ledger" and the table of tasks."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonalloc.lab import problems as datasets
from reasonalloc.lab.evaluate.grading import boxes
from reasonalloc.lab.tasks import GRID, Dials, items
from reasonalloc.lab.tasks.ledger import FILLER, MOST, problem, problems
from reasonalloc.lab.tasks.table import HELD_OUT, dials

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

some_dials = st.builds(
    Dials,
    questions=st.integers(1, 6),
    depth=st.integers(1, 6),
    distractors=st.integers(0, 12),
    restate=st.integers(0, 2),
    doubt=st.integers(0, 2),
    filler=st.integers(0, 2),
)


def solve(prompt: str) -> dict[str, int]:
    """What everybody owns, read from the prompt's text alone."""
    said = prompt.split("\n")[0]
    values: dict[str, int] = {}
    facts = [x.strip() for x in said.split(".") if x.strip()]
    for _ in facts:
        for fact in facts:
            words = fact.split()
            name = words[0]
            if words[2] == "twice":
                if words[-1] in values:
                    values[name] = 2 * values[words[-1]]
            elif "than" in words:
                if words[-1] in values:
                    values[name] = values[words[-1]] + int(words[2]) * (1 if words[3] == "more" else -1)
            else:
                values[name] = int(words[2])
    return values


@given(some_dials, st.integers(0, 1000))
def test_the_answers_follow_from_the_prompt(setting, index):
    made = problem("x", index, setting)
    asked = re.search(r"each of: (.*)\?", made.prompt)[1].split(", ")
    owned = solve(made.prompt)
    assert [owned[x] for x in asked] == list(made.answers)
    assert all(0 < x <= MOST for x in owned.values())
    assert [int(x) for x in boxes(made.chain)] == list(made.answers)


@given(some_dials, st.integers(0, 1000))
def test_every_sum_in_a_chain_is_right(setting, index):
    made = problem("x", index, setting)
    sums = re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)", made.chain)
    found = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    assert sums and all(found[sign](int(a), int(b)) == int(c) for a, sign, b, c in sums)


def test_the_dials_turn():
    plain, restated = problem(0, 0, Dials(restate=0)).chain, problem(0, 0, Dials(restate=2)).chain
    assert "So far" in restated and "So far" not in plain and len(restated) > len(plain)
    doubting = problem(0, 0, Dials(doubt=2)).chain
    assert "Wait" in doubting and "No, wait" in doubting and "once more" in doubting
    talk = [sum(problem(0, 0, Dials(filler=i)).chain.count(x) for x in FILLER) for i in range(3)]
    assert 0 == talk[0] < talk[1] < talk[2]


@pytest.mark.parametrize(
    ("wrong", "told"), [({"questions": 9}, "1 to 8"), ({"depth": 0}, "1 to 12"), ({"doubt": 3}, "0 to 2"),
                        ({"filler": True}, "whole number"), ({"questions": 8, "depth": 8}, "64 people")],
)  # fmt: skip
def test_bad_dials(wrong, told):
    with pytest.raises(ValueError, match=told):
        Dials(**wrong)


def test_a_problem_is_the_same_each_time():
    assert problem(3, 4, GRID["long"]) == problem(3, 4, GRID["long"])
    assert [x.id for x in problems(3, 1, GRID["plain"])] == [x.id for x in problems(5, 1, GRID["plain"])][:3]


def test_held_out_problems_are_not_trained_on():
    """Other seeds, and no prompt of any step of the runs that led to the adapter is a prompt that is judged."""
    batches = pytest.importorskip("batches")
    assert batches.SPLIT != HELD_OUT
    seeds = range(3)
    judged = {x.prompt for k in GRID for seed in seeds for x in items("ledger", count=100, seed=seed, settings=[k])}
    trained, runs = set(), sorted((Path(batches.__file__).parent / "runs").glob("ledger-*/log.jsonl"))
    for log in runs:
        seed = json.loads(log.with_name("settings.json").read_text())["seed"]
        for step in map(json.loads, log.read_text().splitlines()):
            if step["dials"] != "sums":
                key = f"{batches.SPLIT}/{seed}/{step['step'] - 1}"
                trained |= {problem(key, i, Dials(*step["dials"])).prompt for i in range(step["rows"])}
    assert len(judged) == 300 * len(GRID) and len(runs) == 7 and len(trained) > 2500
    assert not judged & trained


def test_ledger_items():
    few = items("ledger", count=2, settings=["plain", "questions=3,depth=2"])
    assert [x.group for x in few] == ["plain"] * 2 + ["questions=3,depth=2"] * 2
    assert [len(x.answers) for x in few] == [2, 2, 3, 3]
    assert len({x.id for x in items("ledger")}) == 8 * len(GRID)
    assert asdict(dials("depth=2"))["depth"] == 2


def test_datasets():
    every = items("math500", fraction=0.02)
    assert len(every) == 10 and all(INSTRUCTION_END in x.prompt for x in every)
    assert items("math500", count=3, seed=5)[0].id != items("math500", count=3, seed=6)[0].id
    assert every[0].group.startswith("level ")


INSTRUCTION_END = "\\boxed{}."


def test_aime_is_read_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REASONALLOC_DATA", str(tmp_path))
    rows = [{"unique_id": f"aime24/{i}", "problem": f"p{i}", "answer": i} for i in range(3)]
    (tmp_path / "aime24.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert {x.answers for x in items("aime24")} == {("0",), ("1",), ("2",)}
    (tmp_path / "aime24.jsonl").write_text("{}", encoding="utf-8")
    datasets._aime24.cache_clear()
    with pytest.raises(ValueError, match="unique_id"):
        items("aime24")


def test_aime_says_where_it_looks(tmp_path, monkeypatch):
    monkeypatch.delenv("REASONALLOC_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="REASONALLOC_DATA"):
        items("aime24")


def test_own_files(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = ['{"problem": "1 + 1?", "answer": 2}', "", '{"id": "b", "problem": "x", "answer": "y"}']
    path.write_text("\n".join(lines), encoding="utf-8")
    assert sorted((x.id, x.answers) for x in items(str(path))) == [("1", ("2",)), ("b", ("y",))]
    path.write_text("".join(f'{{"problem": "{i}", "answer": {i}}}\n' for i in range(20)), encoding="utf-8")
    some, others = ([x.id for x in items(str(path), count=5, seed=i)] for i in (0, 1))
    assert some != others and some == [x.id for x in items(str(path), seed=0)][:5]


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "no problem"), ('{"problem": 1, "answer": 2}', ":1:"), ("{", ":1:"), ('{"problem": "x"}', "answer")],
)
def test_bad_files(text, told, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        items(str(path))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"task": "nosuch"}, "ledger, math500, aime24"),
        ({"task": "math500", "settings": ["plain"]}, "settings"),
        ({"task": "math500", "count": 501}, "500"),
        ({"task": "math500", "fraction": 0.0}, "fraction"),
        ({"task": "ledger", "fraction": 0.5}, "count"),
        ({"task": "ledger", "settings": ["nosuch"]}, "plain"),
        ({"task": "ledger", "settings": []}, "settings must name at least one, got none"),
        ({"task": "ledger", "settings": ["depth=x"]}, "depth"),
    ],
)
def test_bad_tasks(arguments, told):
    with pytest.raises(ValueError, match=told):
        items(**arguments)
