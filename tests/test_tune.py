"""Layer budgets chosen by answers: orders of a wave, the rounds that choose one, the command."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accuracy import folder, task  # noqa: F401  (fixtures)
from hypothesis import given
from hypothesis import strategies as st
from models import tiny

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.fingerprint import fingerprint
from reasonalloc.lab.evaluate.orders import demand_of, followed, orders, shares_of
from reasonalloc.lab.evaluate.tuning import candidates, mixed, schedule, tune
from reasonalloc.lab.tasks import Item
from reasonalloc.policy.wave import WaveProfile

pytest.importorskip("scipy")
pytest.importorskip("math_verify")

DEMAND = (100, 64, 81, 4, 144, 9, 121, 49, 400)  # by their roots 10, 8, 9, 2, 12, 3, 11, 7, 20
CONFIG = ra.Config(method="reasonalloc-wave", budget=300)


def wave(demand=DEMAND):
    return WaveProfile(tuple(demand), tuple(range(len(demand))), fingerprint(tiny()))


def totals(cell):
    return np.asarray(shares_of(cell.config.profile, followed(cell.config)))


@given(st.integers(2, 200), st.integers(1, 500))
def test_rounds_halve_the_cells_and_end_with_two_on_all_problems(count, problems):
    found = schedule(count, problems)
    assert found[0][0] == count and found[-1] == (2, problems)
    for (a, n), (b, m) in pairwise(found):
        assert b == -(-a // 2) and 1 <= n <= m <= 2 * n


def test_orders_hold_the_same_budgets_each_once():
    part = followed(CONFIG)
    shares = shares_of(wave(), part)
    low = shares < 0.5
    assert low.sum() == 2
    some = [dealt for _, dealt in zip(range(30), (x for _, x in orders(shares, low)), strict=False)]
    assert len({x.tobytes() for x in some} | {shares.tobytes()}) == 31
    for dealt in some:
        assert (dealt[low] == shares[low]).all() and sorted(dealt) == sorted(shares)
        assert np.allclose(shares_of(wave(demand_of(dealt, part)), part), dealt, atol=1e-4)
    stays = np.arange(9) > 2
    assert len(list(orders(shares, stays))) == 5  # three layers have six orders, and one of them is the wave's
    assert not list(orders(np.ones(9), low))


def test_candidates_begin_with_the_wave():
    cells = candidates(CONFIG, wave(), 12)
    assert len({x.hash for x in cells}) == len({x.name for x in cells}) == 12
    assert cells[0].name == "reasonalloc-wave 300" and cells[0].config.profile == wave()
    assert len(candidates(CONFIG, wave((4, 4, 9)), 100)) == 3  # there are no more
    for alone in (wave((4, 4, 4)), wave((1, 1, 10_000))):
        with pytest.raises(ValueError, match="one order only"):
            candidates(CONFIG, alone, 12, low=0.9)
    with pytest.raises(ValueError, match="gamma above 0"):
        candidates(ra.Config(method="rkv", budget=300), wave(), 12)


def test_the_first_problems_are_of_all_groups():
    every = [Item(f"{group}{i}", "", ("1",), group) for group in "abc" for i in range(3 if group == "a" else 2)]
    assert [x.id for x in mixed(every)] == ["a0", "b0", "c0", "a1", "b1", "c1", "a2"]


class Answers:
    """A study whose chains score what a table says."""

    def __init__(self, scores, problems):
        self.items = [Item(f"{i:03d}", "", ("1",)) for i in range(problems)]
        self.scores, self.records, self.made = scores, SimpleNamespace(by_key={}), 0

    def run(self, cells, progress=None):
        for cell in cells:
            for x in self.items:
                if (cell.name, x.id, 0) not in self.records.by_key:
                    self.made += 1
                    score = self.scores(cell.name, int(x.id))
                    self.records.by_key[cell.name, x.id, 0] = SimpleNamespace(cell=cell.name, item=x.id, score=score)


def test_the_order_that_answers_most_is_kept():
    cells = candidates(CONFIG, wave(), 20)
    noise = np.random.default_rng(0).normal(0, 0.05, (20, 96))
    number = {x.name: i for i, x in enumerate(cells)}
    level = np.linspace(0.2, 0.6, 20)[np.random.default_rng(1).permutation(20)]
    study = Answers(lambda name, i: level[number[name]] + noise[number[name], i], 96)
    found = tune(study, cells)
    assert number[found.best.name] == level.argmax() and found.start is cells[0]
    assert [x.problems for x in found.rounds] == [6, 12, 24, 48, 96] and len(study.items) == 96
    assert [len(x.scores) for x in found.rounds][:2] in ([20, 10], [20, 11])
    assert all(cells[0].name in x.scores for x in found.rounds)
    assert study.made <= 120 + 11 * 6 + 6 * 12 + 4 * 24 + 3 * 48


def test_where_none_answers_more_the_wave_stays():
    cells = candidates(CONFIG, wave(), 9)
    for ahead in (0.0, 0.1):
        found = tune(Answers(lambda name, i, ahead=ahead: 0.5 + (ahead if "order" not in name else 0), 8), cells)
        assert found.best is found.start is cells[0]


def test_an_order_must_be_ahead_in_the_last_round_too():
    cells = candidates(CONFIG, wave(), 4)
    lucky = cells[2].name
    found = tune(Answers(lambda name, i: 1.0 if name == lucky and i < 4 else 0.5 - 0.5 * (name == lucky), 8), cells)
    assert found.rounds[0].scores[lucky] == 1 and found.best is not cells[2]


@pytest.mark.slow
def test_the_command(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    command = ["tune", "--model", folder, "--task", task, "--problems", "2", "--orders", "3", "--budget", "24"]
    command += ["--interval", "8", "--max-new-tokens", "20", "--keep-below", "0", "--json", "-"]
    assert main([*command, "--dry-run"]) == 0
    assert not Path("tune-out").exists()
    plans = json.loads(capsys.readouterr().out)["studies"]
    assert [x["chains"] for x in plans] == [3, 2]  # three orders on a problem, then two on another
    assert main(command) == 0
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{\n") :])
    names = [x["cell"] for x in found["rows"]]
    assert names[:3] == ["full", "rkv 24", "reasonalloc-wave 24"] and found["rows"][0]["problems"] == 2
    chosen = ra.WaveProfile.load("tune-out/order.json")
    assert chosen.source["tuned"]["kept"] == found["provenance"]["tuned"]["kept"]
    assert ra.Config(method="reasonalloc", budget=24, profile="tune-out/order.json").profile == chosen
    chains = Path("tune-out/generations.jsonl")
    rows = [json.loads(x) for x in chains.read_text().splitlines()]
    chains.write_text("".join(json.dumps(x | {"right": [not y for y in x["right"]]}) + "\n" for x in rows))
    assert main([*command, "--regrade"]) == 0  # before it chooses by them
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{\n") :])["provenance"]["tuned"] == found["provenance"]["tuned"]
    assert [json.loads(x)["right"] for x in chains.read_text().splitlines()] == [x["right"] for x in rows]
