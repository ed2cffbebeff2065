"""Ablations: what they vary, that cells in common are made once, the command; scores smoothed over time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from accuracy import folder, task  # noqa: F401  (fixtures)
from models import prompt, tiny

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.evaluate.ablations import ABLATIONS, Around, cells_of, varied
from reasonalloc.lab.evaluate.study_file import StudyFile
from reasonalloc.policy.smoothing import Smoother
from reasonalloc.policy.view import RowView
from reasonalloc.policy.wave import WaveProfile

pytest.importorskip("scipy")
pytest.importorskip("math_verify")


class FakeWaves:
    """Waves without a model; each one asked for is another."""

    task = "ledger"

    def get(self, count=4, rho=0.93, task=None):  # noqa: F811
        base = 100.0 * count + rho + sum(map(ord, task or "")) / 100
        return WaveProfile((base, base + 5, base / 10), (0, 1, 2), fingerprint(tiny()), rho)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_has_cells_that_differ(name):
    cells = cells_of(ABLATIONS[name], Around(FakeWaves(), budget=48))
    assert [x.name for x in cells[:2]] == ["full", "rkv 48"]
    assert len(cells) > 3 and len({x.name for x in cells}) == len(cells)
    few = [x for x in cells if "permuted" not in x.name and "kept" not in x.name]  # three layers have few orders
    assert len({x.hash for x in few}) == len(few)
    assert all(x.config.budget == 48 for x in cells[1:] if name != "length")


def test_the_default_is_the_plain_cell():
    around = Around(FakeWaves(), budget=48)
    for name in ("alpha", "interval", "mu", "gamma", "window", "ema", "rho", "parts", "profile", "prompt"):
        plain = {x.name: x for x in cells_of(ABLATIONS[name], around)}["reasonalloc 48"]
        assert plain.hash == around.cell().hash


def test_alpha_of_all_cells():
    cells = {x.name: x.config.alpha for x in cells_of(ABLATIONS["parts"], Around(FakeWaves(), 48, {"alpha": 0.5}))}
    assert cells.pop("full") == ra.Config(method="full").alpha and set(cells.values()) == {0.5}
    varied = [x.config.alpha for x in cells_of(ABLATIONS["alpha"], Around(FakeWaves(), 48, {"alpha": 0.5}))][2:]
    assert varied == [0.0, 0.1, 0.3, 0.5, 1.0]


def test_a_profile_that_is_given_is_the_wave(tmp_path):
    """And ablations that compare waves are refused, of a file's too; none is measured."""
    mine = WaveProfile((3.0, 7.0, 5.0), (0, 1, 2), fingerprint(tiny()))
    mine.save(tmp_path / "own.json")
    for given in (mine, str(tmp_path / "own.json")):
        around = Around(FakeWaves(), 48, {"profile": given, "alpha": 0.3})
        for cell in cells_of(ABLATIONS["mu"], around):
            assert cell.config.profile == mine or not cell.config.resolve().needs_wave
        for name in ("rho", "profile", "transfer"):
            with pytest.raises(ValueError, match="it compares waves, and one is given"):
                cells_of(ABLATIONS[name], around)
    study = StudyFile("small", ablations=["mu"], budgets=[48], config={"profile": mine})
    ((_, cells),) = study.ablated(FakeWaves())
    assert cells[-1].config.profile == mine


def test_the_plain_cell_has_the_value_that_no_other_has():
    for setting, value in (("alpha", 0.3), ("alpha", 0.1), ("interval", 32), ("window", 16), ("smoothing", 0.5)):
        name = "ema" if setting == "smoothing" else setting
        cells = [x.name for x in cells_of(ABLATIONS[name], Around(FakeWaves(), 256, {setting: value}))]
        found = varied(cells)
        assert found is not None and found[0] == setting and found[1]["reasonalloc 256"] == value
        assert len(set(found[1].values())) == len(found[1])
    plain = ["rkv 256", "reasonalloc 256", "reasonalloc 256 alpha=0.5"]
    assert varied(plain) == ("alpha", {"reasonalloc 256": 0.1, "reasonalloc 256 alpha=0.5": 0.5})
    assert varied([*plain, "reasonalloc 256 alpha=0.1"]) is None  # which value is the plain one's?


def test_a_task_that_is_not_there_is_left_out_of_transfer(monkeypatch):
    def get(self, **what):
        if what.get("task") == missing:
            raise ValueError(f"{missing} cannot be had")
        return given(self, **what)

    given = FakeWaves.get
    monkeypatch.setattr(FakeWaves, "get", get)
    missing = "aime24"
    with pytest.warns(UserWarning, match="left out: aime24 cannot be had"):
        names = [x.name for x in cells_of(ABLATIONS["transfer"], Around(FakeWaves(), budget=48))]
    assert names[2:] == ["reasonalloc 48", *(f"reasonalloc 48 wave={x}" for x in
                                             ("math500", "functions", "contests", "document"))]  # fmt: skip
    missing = "document"
    with pytest.raises(ValueError, match="document cannot be had"):
        cells_of(ABLATIONS["transfer"], Around(FakeWaves(), budget=48))


def test_permuted_waves_hold_the_same_demands():
    cells = {x.name: x.config for x in cells_of(ABLATIONS["wave"], Around(FakeWaves(), budget=48))}
    wave = cells["reasonalloc-wave 48"].profile.demand
    assert cells["reasonalloc-wave 48 wave=reversed"].profile.demand == wave[::-1]
    for i in range(3):
        assert sorted(cells[f"reasonalloc-wave 48 wave=permuted-{i}"].profile.demand) == sorted(wave)


def test_the_notch_stays_or_goes():
    demand = (100, 64, 81, 4, 144, 9, 121, 49, 400)  # shares by their roots: 10, 8, 9, 2, 12, 3, 11, 7, 20

    class Notched(FakeWaves):
        def get(self, *_, **__):
            return WaveProfile(demand, tuple(range(9)), fingerprint(tiny()))

    cells = {x.name: x.config for x in cells_of(ABLATIONS["notch"], Around(Notched(), budget=300))}

    def totals(name):
        config = cells[f"reasonalloc-wave 300{name}"]
        return np.asarray(config.policy().layers.totals(np.array(config.profile.demand), 9 * 2 * 300, VIEW))

    VIEW = RowView(0, 1000, 2, 8)
    plain, low = totals(""), np.isin(np.arange(9), [3, 5])
    alone, without = totals(" wave=notch-only"), totals(" wave=no-notch")
    assert abs(alone[low] - plain[low]).max() <= 1 and np.ptp(alone[~low]) <= 1
    assert abs(without[low] - 600).max() <= 90 and (np.diff(without[~low]) * np.diff(plain[~low]) >= 0).all()
    orders = [totals(f" wave=notch-kept-{i}") for i in range(19)]
    assert all(abs(x[low] - plain[low]).max() <= 1 for x in orders)
    assert all(abs(np.sort(x) - np.sort(plain)).max() <= 1 for x in orders)
    assert len({tuple(x) for x in orders}) == 19
    with pytest.raises(ValueError, match="gamma above 0"):
        cells_of(ABLATIONS["notch"], Around(Notched(), 300, {"gamma": 0.0}))
    demand = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="no notch to ask about"):
        cells_of(ABLATIONS["notch"], Around(Notched(), 300))


@pytest.mark.slow
def test_the_command(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    common = ["--model", folder, "--task", task, "--budget", "24", "--interval", "8", "--max-new-tokens", "20"]
    assert main(["ablate", "alpha", *common, "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [x["cell"] for x in rows][2:4] == ["reasonalloc 24 alpha=0", "reasonalloc 24"]
    lines = Path("ablations-out/generations.jsonl")
    before = lines.read_bytes().count(b"\n")
    assert main(["ablate", "parts", *common]) == 0
    assert lines.read_bytes().count(b"\n") == before + 2 * 5  # full, R-KV and ReasonAlloc were there
    assert {"alpha.png", "parts.md", "parts.json"} <= {x.name for x in Path("ablations-out").iterdir()}
    assert main(["ablate", "nosuch"]) == 2
    assert main(["ablate", "parts", "--alpha", "1.5"]) == 2
    assert main(["ablate", "parts", *common, "--alpha", "0.5"]) == 2  # the folder's cells have another
    assert "take another folder" in capsys.readouterr().err


# ---- smoothing -----------------------------------------------------------------------------------------------------


def array(*values):
    return np.array(values, np.float32)


def places(*values):
    return np.array(values, np.int32)


def test_scores_are_averaged_by_position():
    own = Smoother(0.75)
    assert own.smooth(0, 0, 0, places(0, 2, 5), array(4, 8, 1)).tolist() == [4, 8, 1]
    assert own.smooth(0, 0, 0, places(2, 5, 7), array(0, 5, 3)).tolist() == [6, 2, 3]
    assert own.smooth(0, 0, 1, places(2), array(1)).tolist() == [1]
    own.move_rows(np.array([0, 0]))
    assert own.smooth(1, 0, 0, places(2), array(2)).tolist() == [5]
    assert own.smooth(0, 0, 0, places(2), array(2)).tolist() == [5]
    own.forget_from(np.array([2, 9]))
    assert own.smooth(0, 0, 0, places(2), array(2)).tolist() == [2]
    assert own.smooth(1, 0, 0, places(2), array(1)).tolist() == [4]


def generated(**settings):
    model, config = tiny(), ra.Config(budget=24, interval=8, method="rkv", **settings)
    cache = ra.ReasonAllocCache(model, config)
    ids = prompt(30, rows=2)
    model.generate(ids, **cache_argument(cache), max_new_tokens=60, do_sample=False, attention_mask=ids * 0 + 1)
    return [[x.tolist() for x in cache.positions(layer, row)] for layer in range(3) for row in range(2)]


def test_smoothing_changes_what_stays_but_not_how_much():
    plain, smooth = generated(), generated(smoothing=0.9)
    assert plain != smooth
    assert [len(x) for y in plain for x in y] == [len(x) for y in smooth for x in y]
    assert generated(smoothing=1e-6) == plain  # the way through Python gives what C gives


def test_bad_smoothing():
    with pytest.raises(ValueError, match="smoothing"):
        ra.Config(budget=64, smoothing=1.0)
