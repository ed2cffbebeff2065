"""benchmarks/compare.py: its arithmetic on known numbers, its verdict, and one run of this checkout against itself."""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import compare
from compare import Row

ROOT = Path(__file__).parents[1]


def test_interval_of_a_median_is_that_of_the_tables():
    # As in any textbook: of 6 values the first and last, of 10 the 2nd and 9th, of 20 the 6th and 15th.
    for n, rank in ((1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (33, 11)):
        assert compare.median_interval(range(1, n + 1)) == (rank, n + 1 - rank)


def test_interval_holds_the_median_as_often_as_it_says():
    rng, held = random.Random(0), 0
    for _ in range(2000):
        low, high = compare.median_interval([rng.lognormvariate(0, 1) for _ in range(15)])  # median 1
        held += low <= 1 <= high
    assert held / 2000 >= 0.95


def row(*sets: tuple[float, ...], old: float = 1.0) -> Row:
    """A row whose speeds are these."""
    return Row("x", old=[[old] * len(each) for each in sets], new=[[old / speed for speed in each] for each in sets])


def test_speed_is_of_paired_rounds():
    paired = Row("x", old=[[1.0, 10.0, 100.0]], new=[[2.0, 20.0, 50.0]])
    assert paired.ratios() == [[0.5, 0.5, 2.0]]
    assert paired.speed() == 0.5
    assert paired.seconds() == (10.0, 20.0)


@pytest.mark.parametrize(
    ("speeds", "slow"),
    [
        (((0.9,) * 9,) * 3, True),
        (((0.9,) * 9, (0.9,) * 9, (0.98,) * 9), False),  # processes differ by more than that
        (((1.0,) * 9,) * 3, False),
        (((0.96, 0.98) * 5,), False),  # the interval reaches the bound
        (((0.95, 0.96) * 5,), True),
        (((1.2,) * 9,), False),
    ],
)
def test_a_row_is_too_slow_where_its_whole_interval_is(speeds, slow):
    assert row(*speeds).too_slow(0.97) is slow


def test_the_interval_covers_the_medians_of_all_sets():
    low, high = row((1.0,) * 11, (1.0,) * 11, (1.1,) * 11).interval()
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(1.1)


def test_a_row_that_cannot_be_run_is_a_failure():
    assert Row("x", error="AttributeError: gone").too_slow(0.0)


def test_results_that_differ_are_in_the_table():
    same, other, lost = row((1.0,)), row((1.0,)), row((1.0,))
    other.difference, lost.difference = 0.25, compare.largest_difference([1.0], [1.0, 2.0])
    lines = compare.table([same, other, lost, Row("y", error="ValueError: a\n b")], 0.97).splitlines()[2:]
    assert lines[0].endswith("|  |")
    assert "results differ by 0.25" in lines[1]
    assert "other results" in lines[2]
    assert lines[3].endswith("ValueError: a b |")
    assert compare.largest_difference([1.0, 2.0], [1.5, 2.0]) == 0.5


@pytest.mark.parametrize(("seconds", "text"), [(2.0, "2 s"), (0.0015, "1.5 ms"), (2.5e-6, "2.5 us"), (1e-7, "0.1 us")])
def test_times_are_readable(seconds, text):
    assert compare.in_words(seconds) == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", str(ROOT)], "nowhere is not a checkout"),
        ([str(ROOT), str(ROOT), "--only", "("], "no regular expression"),
        ([str(ROOT), str(ROOT), "--rounds", "0"], "at least 1"),
    ],
)
def test_bad_arguments_are_named(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.parse(arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_this_checkout_against_itself(tmp_path, capsys):
    file = tmp_path / "compare.json"
    arguments = [str(ROOT), str(ROOT), "--no-build", "--rounds", "2", "--sets", "2", "--output", str(file)]
    # A bound that noise cannot reach: what is tested is that every kind of case runs and agrees with itself.
    only = (
        "attend f32, D 64, 256|append bf16, 1 |score rkv, 640|route|cut rkv, Llama 8B, budget 512$|1 row.*32|generate"
    )
    assert compare.main([*arguments, "--bound", "0.01", "--only", only]) == 0
    found = json.loads(file.read_text())
    assert {"attend f32, D 64, 256 tokens", "generate reasonalloc, tiny"} <= {x["name"] for x in found["rows"]}
    for each in found["rows"]:
        assert not each["error"]
        assert each["difference"] == 0.0
        assert [len(x) for x in each["old"]] == [2, 2]
        ratios = [a / b for x, y in zip(each["old"], each["new"], strict=True) for a, b in zip(x, y, strict=True)]
        assert each["speed"] == pytest.approx(statistics.median(ratios))
    assert "0 below 0.01" in capsys.readouterr().out


@pytest.mark.slow
def test_a_case_that_fails_is_told(monkeypatch, capsys):
    monkeypatch.setattr(compare.Side, "ask", failing(compare.Side.ask))
    arguments = [str(ROOT), str(ROOT), "--no-build", "--rounds", "1", "--sets", "1", "--only", "robustify"]
    assert compare.main(arguments) == 1
    assert "unknown request" in capsys.readouterr().out


def failing(ask):
    return lambda side, request: ask(side, request.replace("open", "shut"))
