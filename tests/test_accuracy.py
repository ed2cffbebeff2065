"""Accuracy: what is planned, graded, summed up and resumed; the command on a tiny model; workers that die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import build
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.hf.decode import Sampling
from reasonalloc.lab.evaluate import expected, verifier_client
from reasonalloc.lab.evaluate.accuracy import Cell, cells, plan, run_batch
from reasonalloc.lab.evaluate.grading import boxes, grade
from reasonalloc.lab.evaluate.records import Record, Records, pack, read
from reasonalloc.lab.evaluate.statistics import (
    bootstrap,
    holm,
    paired,
    permutation_test,
    picks,
    proportion_interval,
    proportion_mean,
    sign_test,
)
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.evaluate.summary import Summary, summarise
from reasonalloc.lab.evaluate.workers import Source, run_on_ray
from reasonalloc.lab.tasks import Item, items

pytest.importorskip("scipy")
pytest.importorskip("math_verify")

WORDS = [f"w{i}" for i in range(94)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with a tokenizer that knows words."""
    path = tmp_path_factory.mktemp("model")
    build("llama", eos_token_id=1).save_pretrained(path)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    own = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "own.jsonl"
    rows = [{"problem": " ".join(WORDS[i : i + 5 + 3 * i]), "answer": "1"} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def command(folder, task, *more, output="out"):
    return ["evaluate", "accuracy", "--model", folder, "--task", task, "--methods", "full,rkv,streaming", "--budgets",
            "24", "--interval", "8", "--max-new-tokens", "30", "--batch-size", "2", "--output", output,
            *more]  # fmt: skip


# ---- grading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),  # a peer reads "\frac{1"
        (r"\boxed{1} \boxed{2", ["1"]),
        (r"\boxed{3 hmm, no: \boxed{5}", ["5"]),
        (r"\boxed{\left\{1\right.} then \boxed{2}", [r"\left\{1\right.", "2"]),
        ("\\boxed{1\\", []),
    ],
)
def test_boxes(text, found):
    assert boxes(text) == found


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        (r"\boxed{3} no, \boxed{0.5}", [r"\frac{1}{2}"], [True]),
        (r"\boxed{7}", ["8"], [False]),
        ("nothing", ["8"], [False]),
        (r"\boxed{1} \boxed{2}", ["1", "3", "4"], [True, False, False]),
        (r"\boxed{1} \boxed{2} \boxed{9}", ["1", "2"], [True, True]),
        (r"\boxed{x +}", ["8"], [False]),
    ],
)
def test_grade(text, answers, right):
    assert grade(text, answers).right == right


@pytest.mark.parametrize(
    ("text", "given"),
    [
        (r"Don has \boxed{1}. Answer 3: Ida has \boxed{3}. Answer 2: Jo has \boxed{2}.", ["1", "2", "3"]),
        (r"Don has \boxed{1}. Don has \boxed{7}.", ["1", "", ""]),  # the first word counts
        (r"\boxed{1}, \boxed{2}, \boxed{3}", ["1", "2", "3"]),
        (r"Jo, not Joan or Don's: Jo has \boxed{2}, and \boxed{1}", ["1", "2", ""]),
        (r"Joan has \boxed{1}", ["1", "", ""]),
        ("Don has \\boxed{1}. Don has 1.\nAnswer 2: Max has \\boxed{9}", ["1", "9", ""]),  # not a name asked for
        (r"Don has 1. So Ida has 3. All: \boxed{1}, \boxed{2}, \boxed{3}", ["1", "2", "3"]),
    ],
)
def test_boxes_belong_to_whom_they_name(text, given):
    assert grade(text, ["1", "2", "3"], ["Don", "Jo", "Ida"]).answers == given


def test_rules_for_boxes():
    """A chain that runs on after its answers: only the last boxes are of the second round."""
    text = r"Don has \boxed{1}. Jo has \boxed{2}. Again: Don has \boxed{5}."
    found = grade(text, ["1", "2"], ["Don", "Jo"])
    assert (found.answers, found.right, found.again) == (["1", "2"], [True, True], 1)
    assert found.by_rule == {"last": [False, True], "order": [True, True]}
    one = grade(r"\boxed{3}, so \boxed{4}", ["4"])
    assert (one.answers, one.right, one.by_rule, one.again) == (["4"], [True], {"first": [False]}, 1)
    plain = grade(r"\boxed{1}", ["1", "2"])
    assert (plain.answers, plain.right, plain.by_rule, plain.again) == (["1", ""], [True, False], {}, 0)
    assert grade("none", ["1"]).right == [False]


# ---- statistics ----------------------------------------------------------------------------------------------------


def test_where_all_problems_agree_the_interval_still_has_a_width():
    """Wilson's, by its formula; elsewhere the bootstrap's, as it was."""
    z = 1.959963984540054

    def wilson(share, n):
        middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
        return [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)]

    for scores, share in (([0.5, 0.5], 0.5), ([1.0] * 4, 1.0), ([0.0] * 8, 0.0), ([1.0], 1.0)):
        found = proportion_mean(scores, picks(len(scores), 0))
        assert found.mean == share and [found.low, found.high] == pytest.approx(wilson(share, len(scores)), abs=1e-12)
    third = proportion_mean([1 / 3] * 4, picks(4, 0))  # of 4 problems 1.33 are right: from 1 to 2 of them
    assert [third.low, third.high] == pytest.approx([wilson(1 / 4, 4)[0], wilson(2 / 4, 4)[1]])
    mixed = [0.0, 1.0, 1.0, 0.5]
    assert proportion_mean(mixed, picks(4, 0)) == bootstrap(mixed, picks(4, 0))


def test_a_full_cache_that_is_cut_off_is_warned_of():
    def rows(finishes):
        return [record("full", str(i), 2, tokens=30 + i, finish=x) for i, x in enumerate(finishes)]

    known = {"": (1.0, 1.0)}
    (told,) = summarise(rows(["length", "length", "stop"]), ["full"], expected=known).warnings
    assert told.startswith("67% of the full cache's own chains were cut off at 31 tokens")
    assert not summarise(rows(["stop"] * 3), ["full"], expected=known).warnings
    assert len(summarise(rows(["length"] * 3), ["full"]).warnings) == 2  # and nothing is known of the model
    others = [replace(x, cell="rkv 24") for x in rows(["length"] * 3)]
    assert not summarise([*rows(["stop"] * 3), *others], ["full", "rkv 24"], expected=known).warnings


def test_the_share_cut_off_stands_beside_the_accuracy():
    summary = summarise([record("full", str(i), 1, finish="length" if i else "stop") for i in range(4)], ["full"])
    lines = [x for x in summary.markdown().splitlines() if x.startswith("|")]
    heads, row = ([x.strip() for x in line.strip("|").split("|")] for line in (lines[0], lines[-1]))
    assert heads[2:4] == ["accuracy", "cut off"] and row[2:4] == ["50.0% [15.0%, 85.0%]", "75%"]


def test_the_sign_test():
    assert sign_test(0, 0) == 1.0
    assert sign_test(6, 0) == pytest.approx(2 / 64)
    assert sign_test(3, 5) == sign_test(5, 3) == pytest.approx(186 / 256)  # 2 * (1 + 8 + 28 + 56) / 2^8


def test_the_permutation_test():
    """Against counting by hand, scipy's, and Holm's rule by hand."""
    stats = pytest.importorskip("scipy.stats")
    assert permutation_test([0.0, 0.0]) == 1.0
    assert permutation_test([1.0, 1.0, 1.0]) == 2 / 8
    assert permutation_test([1.0, 2.0, -1.0, 0.0]) == 6 / 8  # |+-1 +-2 +-1| is 4, 2, 2, 0, each twice
    for n in (9, 40):
        x = np.random.default_rng(n).normal(0.3, 1, n)
        theirs = stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=20_000, rng=0).pvalue
        assert permutation_test(x.tolist()) == pytest.approx(theirs, abs=0.01)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_paired():
    result = paired("x", [1, 1, 0.5, 0], [0, 1, 0, 1], picks(4, 0))
    assert (result.wins, result.losses, result.difference.mean) == (2, 1, 0.125)


def test_intervals():
    low, high = proportion_interval(8, 8)
    assert high == 1 and 0.6 < low < 0.7
    assert proportion_interval(0, 8) == (0.0, pytest.approx(1 - low))
    measure = bootstrap([0.0, 1.0] * 50, picks(100, 0))
    assert measure.mean == 0.5 and 0.35 < measure.low < 0.45 < 0.55 < measure.high < 0.65
    assert bootstrap([1.0], picks(1, 0)).low is None


# ---- plan and summary ----------------------------------------------------------------------------------------------

ITEMS = [Item(str(i), "w1 w2", ("1",), "a" if i < 3 else "b") for i in range(5)]
CELLS = cells(["full", "rkv", "reasonalloc"], [24], [], {})


def record(cell, item, score, sample=0, tokens=10, finish="stop"):
    right = [True] * score + [False] * (2 - score)
    group = next((x.group for x in ITEMS if x.id == item), "")
    return Record(
        cell, "h", "asked", item, group, sample, 0, 5, tokens, finish, "", [], right, 24, None, 1, 100.0, 200, 0.5
    )


def test_records_of_other_types_are_refused(tmp_path):
    path, good = tmp_path / "a.jsonl", asdict(record("full", "0", 1))
    for name, value in [
        ("right", []), ("right", [1]), ("right", None), ("answers", "x"), ("answers", [1]), ("sample", -1),
        ("sample", 1.5), ("tokens", True), ("finish", "ended"), ("budget", "24"), ("seconds", -1.0),
        ("mean_bytes", float("nan")), ("peak_bytes", 10**400), ("slots", float("inf")), ("item", None),
    ]:  # fmt: skip
        path.write_text(json.dumps({**good, name: value}) + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"a\.jsonl:1 is not a generation \(.*{name}"):
            list(read(path))
    path.write_text(json.dumps(good) + "\n" + "[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: nested too deep"):
        list(read(path))


def test_texts_with_any_line_end_are_read_as_they_were_written(tmp_path):
    records = Records(tmp_path)
    records.open({"a": 1})
    odd = replace(record("full", "0", 1), text="a\u2028b\x85c\x0bd\re", answers=["\u2029"])
    records.add(odd)
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        records.add(replace(record("full", "1", 1), text="\ud800"))
    records.close()
    assert list(read(tmp_path / "generations.jsonl")) == [odd]
    pack([odd], tmp_path / "p.jsonl.gz")
    assert list(read(tmp_path / "p.jsonl.gz")) == [odd]


@pytest.mark.parametrize("text", ["null", "[]", "3", "{", "[" * 100_000, '{"a": "\\ud800"}'])
def test_a_folder_whose_settings_are_damaged_is_refused(text, tmp_path):
    records = Records(tmp_path)
    records.open({"a": 1})
    records.add(record("full", "0", 1))
    records.close()
    before = (tmp_path / "generations.jsonl").read_bytes()
    (tmp_path / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"settings\.json is not a file of settings"):
        Records(tmp_path).open({"a": 1})
    if text != "[]":
        (tmp_path / "runs.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"runs\.json is not a list of runs"):
            records.runs()
    assert (tmp_path / "generations.jsonl").read_bytes() == before


@pytest.mark.parametrize("packed", [False, True])
def test_chains_of_which_no_settings_are_left_are_refused(packed, tmp_path):
    records = Records(tmp_path)
    records.open({"a": 1})
    records.add(record("full", "0", 1))
    records.add_run({"command": "a"})
    records.close()
    if packed:
        pack(records.by_key.values(), tmp_path / "generations.jsonl.gz")
        (tmp_path / "generations.jsonl").unlink()
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"has generations, and no settings\.json"):
        Records(tmp_path).open({"a": 2})
    assert records.runs() == [{"command": "a"}]


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


def test_an_answer_that_never_ends_is_wrong(monkeypatch):
    monkeypatch.setattr(verifier_client, "SECONDS", 1.0)
    slow = grade(r"\boxed{9^{9^{9^{9}}}}", ["8"])
    assert (slow.answers, slow.right) == (["9^{9^{9^{9}}}"], [False])
    assert grade(r"\boxed{0.5}", [r"\frac{1}{2}"]).right == [True]  # by the next process


def test_a_verifier_that_dies_is_asked_again():
    verifier, pipes = verifier_client.Verifier(), {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    verifier._process = subprocess.Popen([sys.executable, "-c", "input()"], **pipes)  # dies when asked
    assert verifier.ask("0.5", r"\frac{1}{2}") and not verifier.ask("0.5", "2")
    verifier.stop()


def test_a_math_verify_that_cannot_compare_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("parse = lambda x, **_: x\nverify = lambda *_, **__: True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="another version"):
        verifier_client.Verifier().ask("0.5", "x")


def test_a_cell_knows_its_settings():
    one, other = Cell("x", ra.Config(method="rkv", budget=24)), Cell("x", ra.Config(method="rkv", budget=24, alpha=0.2))
    assert one.hash != other.hash and one.hash == Cell("y", ra.Config(method="rkv", budget=24)).hash
    assert [x.name for x in CELLS] == ["full", "rkv 24", "reasonalloc 24"]


def test_summary():
    records = [record("full", str(i), 2) for i in range(5)]
    records += [record("rkv 24", str(i), i % 2) for i in range(5)]
    records += [record("reasonalloc 24", str(i), 1, tokens=20, finish="length") for i in range(5)]
    full, rkv, ours = summarise(records, [x.name for x in CELLS], expected={"": (1.0, 1.0)}).rows
    assert (full.accuracy.mean, rkv.accuracy.mean, ours.accuracy.mean) == (1.0, 0.2, 0.5)
    assert [x.against for x in ours.against] == ["full", "rkv 24"] and ours.against[1].wins == 3
    assert not full.against and [x.against for x in rkv.against] == ["full"]
    assert ours.truncated == 1.0 and ours.tokens == 20 and ours.tokens_per_s == 40
    assert rkv.groups == {"a": pytest.approx(1 / 6), "b": 0.25} and rkv.setting == "24"


def test_what_is_varied_is_compared_with_the_default():
    names = ["full", "rkv 24", "rkv 24 prompt=kept", "reasonalloc 24", "reasonalloc 24 alpha=1"]
    records = [record(name, str(i), 2 if "=" in name else i % 2) for name in names for i in range(5)]
    summary = summarise(records, names)
    against = {x.cell: [y.against for y in x.against] for x in summary.rows}
    assert against["rkv 24 prompt=kept"] == ["full", "rkv 24"]
    assert against["reasonalloc 24 alpha=1"] == ["full", "rkv 24", "reasonalloc 24"]
    assert against["reasonalloc 24"] == ["full", "rkv 24"] and not against["full"]
    assert "less default (p)" in summary.markdown()


def test_a_summary_is_read_back(tmp_path):
    names = ["full", "rkv 24", "reasonalloc 24"]
    made = summarise([record(name, str(i), i % 3) for name in names for i in range(5)], names, provenance={"seed": 0})
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(made.as_json()))
    assert Summary.load(path) == made
    for text, said in (("{", "not a summary"), ("[]", "of schema"), ('{"schema": 2, "rows": [{}]}', "'against'")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            Summary.load(path)


def test_samples_are_averaged():
    records = [
        record("full", "0", 2, 0),
        record("full", "0", 0, 1),
        record("full", "1", 2, 0),
        record("full", "1", 2, 1),
    ]
    (row,) = summarise(records, ["full"]).rows
    assert row.scores == {"0": 0.5, "1": 1.0} and row.problems == 2 and row.samples == 2


def test_the_gate():
    good = [record("full", str(i), 2) for i in range(5)]
    bad = [record("full", str(i), 0) for i in range(5)]
    assert not summarise(good, ["full"], expected={"": (0.95, 0.95)}).warnings
    assert "known for 95.0%" in summarise(bad, ["full"], expected={"": (0.95, 0.95)}).warnings[0]
    assert "on b" in summarise(bad[3:], ["full"], expected={"b": (0.95, 0.95)}).warnings[0]
    assert "no published" in summarise(good, ["full"]).warnings[0]
    assert "not measured" in summarise([record("rkv 24", "0", 2)], ["rkv 24"], expected={"": (1.0, 1.0)}).warnings[0]
    assert not summarise(good[:4] + bad[4:], ["full"], expected={"": (0.95, 0.95)}).warnings  # 80 % of five may be 95 %
    assert not summarise(good[:4] + bad[4:], ["full"], expected={"": (0.7, 1.0)}).warnings
    assert "70.0% to 90.0%" in summarise(bad, ["full"], expected={"": (0.7, 0.9)}).warnings[0]
    assert "no known score" in summarise(good, ["full"], expected={"a": (1.0, 1.0)}).warnings[0]
    table = summarise(bad, ["full"], expected={"": (0.95, 0.95)})
    assert "Warning" in table.markdown() and "known for" in str(table.table().caption)


def test_a_methods_new_default_is_another_cell(monkeypatch):
    from reasonalloc.methods import METHODS

    (cell,) = cells(["rkv"], [24], [], {})
    before = cell.hash
    assert cells(["rkv"], [24], [], {})[0].hash == before
    monkeypatch.setitem(METHODS.classes, "rkv", METHODS["reasonalloc-route"])
    assert cell.hash != before


def test_known_scores():
    assert expected.scores("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "math500", [""]) == {"": (0.891, 0.891)}
    assert expected.scores("someone/else", "math500", [""]) is None
    assert expected.scores(None, "ledger", ["plain"]) is None
    measured = expected.scores("ledger-135m", "ledger", ["plain"])
    assert measured is not None and 0.5 < measured["plain"][0] < 1.0 and measured["plain"][1] == 1.0


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test writes into the user's folders."""
    monkeypatch.chdir(tmp_path)


def texts(path="out"):
    return {x.key: (x.text, x.finish, x.peak_bytes) for x in read(Path(path) / "generations.jsonl")}


def test_the_command(folder, task, capsys):
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


def test_packed_generations_are_gone_on_from(folder, task, capsys):
    assert main([*command(folder, task), "--pack"]) == 0
    path = Path("out/generations.jsonl")
    before = path.read_bytes()
    path.unlink()  # as in a clone, where only what was packed is kept
    assert main([*command(folder, task), "--seed", "1"]) == 2
    assert "seed 0, now 1" in capsys.readouterr().err and not path.exists()
    assert main(command(folder, task)) == 0
    assert path.read_bytes() == before


def test_a_table_names_the_machine_that_made_the_chains(folder, task):
    assert main(command(folder, task)) == 0
    path = Path("out/runs.json")
    (made,) = json.loads(path.read_text())
    assert set(made) == {"command", "created", "machine", "versions", "devices"} and made["devices"] == ["cpu"]
    path.write_text(path.read_text().replace(made["versions"]["torch"], "9.9"))
    assert main(command(folder, task)) == 0  # makes nothing but the table
    said = json.loads(Path("out/accuracy.json").read_text())["provenance"]
    assert said["versions"]["torch"] == said["runs"][0]["versions"]["torch"] == "9.9"
    assert main([*command(folder, task), "--methods", "snapkv"]) == 0
    assert [x["versions"]["torch"] for x in json.loads(path.read_text())] == ["9.9", made["versions"]["torch"]]
    Path("out/generations.jsonl").unlink()
    assert main([*command(folder, task), "--device-map", "cuda:99"]) == 2
    assert main([*command(folder, task), "--model", "./nosuch"]) == 2  # a run that makes nothing is none
    assert not path.exists()


def test_samples(folder, task):
    assert main([*command(folder, task), "--samples", "2", "--temperature", "0.8"]) == 0
    assert len(texts()) == 30


def test_bad_options(folder, task, capsys):
    for more, told in [
        (["--samples", "2"], "temperature"),
        (["--methods", "nosuch"], "nosuch"),
        (["--settings", "plain"], "ledger"),
        (["--device-map", "cuda:99"], "auto and cpu"),
        (["--budgets", "8"], "window"),
    ]:
        assert main([*command(folder, task), *more]) == 2
        assert told in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on(folder, task):
    """Killed at several moments: in the end every chain is there once, as in a run that was left alone."""
    arguments = [sys.executable, "-m", "reasonalloc.cli", *command(folder, task, output="killed")]
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


def test_a_changed_problem_or_model_is_noticed(folder, task, tmp_path, capsys):
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


def test_grading_again(folder, task, capsys):
    assert main(command(folder, task)) == 0
    path = Path("out/generations.jsonl")
    before = path.read_bytes()
    rows = [json.loads(x) for x in before.splitlines()]
    path.write_text("".join(json.dumps(x | {"right": [not y for y in x["right"]]}) + "\n" for x in rows))
    assert main([*command(folder, task), "--regrade"]) == 0
    assert [json.loads(x) for x in path.read_bytes().splitlines()] == rows
    assert path.read_bytes() == before


def test_a_wave_of_another_model_is_refused(folder, task):
    asked = items(task)
    study = Study(Path("out"), Source(folder), task, asked, Sampling(max_new_tokens=8))
    study.waves.tokens = 8
    study.records.open(study.settings)
    study.waves.get(1)
    again = Study(Path("out"), Source(folder, "bfloat16"), task, asked, Sampling(max_new_tokens=8))
    again.waves.tokens = 8
    with pytest.raises(ValueError, match="measured with dtype 'float32', now 'bfloat16'"):
        again.waves.get(1)


def test_accelerate_places_the_model(folder):
    pytest.importorskip("accelerate")
    (batch,) = plan(ITEMS[:1], cells(["rkv"], [24], [], {"interval": 8}), 1, 1)
    texts = [[x.text for x in run_batch(*m[:2], batch, Sampling(max_new_tokens=30))]
             for m in (Source(folder).load(), Source(folder, device_map="cpu").load())]  # fmt: skip
    assert texts[0] == texts[1]


def test_a_mistyped_model_leaves_the_folder_usable(folder, task, capsys):
    assert main(command("./nosuch", task)) == 2
    assert main(command(folder, task)) == 0


# ---- Ray -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_gives_the_same(folder, task, capsys):
    pytest.importorskip("ray")
    assert main(command(folder, task)) == 0
    assert main([*command(folder, task, output="ray"), "--ray", "--workers", "2"]) == 0
    assert texts("ray") == texts("out")
    with_wave = ["--methods", "reasonalloc", "--ray"]  # which an actor measures too
    assert main([*command(folder, task, output="ray"), *with_wave, "--device-map", "cuda"]) == 2
    for methods in (["--methods", "rkv"], with_wave[:2]):  # with and without a wave, which is measured first
        assert main([*command(folder, task, output="none"), *methods, "--ray", "--gpus", "1000"]) == 2
        assert "fewer --threads or --gpus fit" in capsys.readouterr().err
    assert main([*command(folder, task, output="ray"), *with_wave]) == 0
    assert main([*command(folder, task), *with_wave[:2]]) == 0
    assert texts("ray") == texts("out")
    assert [x["devices"] for x in json.loads(Path("ray/runs.json").read_text())] == [["cpu"], ["cpu"]]


@pytest.mark.slow
def test_a_killed_worker_is_replaced(folder, task):
    ray = pytest.importorskip("ray")
    sampling = Sampling(max_new_tokens=30)
    small = cells(["rkv"], [24], [], {"interval": 8})
    batches = plan(ITEMS, small, 1, 2)
    pids = []

    def kill(actors):
        ray.kill(actors[0], no_restart=True)
        pids.append(len(actors))

    found = {x.key: x.text for x in run_on_ray(Source(folder), batches, sampling, workers=2, started=kill)}
    assert pids == [2]
    model, tokenizer, _ = Source(folder).load()
    local = {x.key: x.text for b in batches for x in run_batch(model, tokenizer, b, sampling)}
    assert found == local and len(found) == 5


@pytest.mark.slow
def test_what_a_worker_had_finished_is_not_made_again(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from reasonalloc.lab.evaluate import workers

    made = record("rkv 24", "0", 2)

    class Slow:
        """Gives one chain, then waits; the next one of its kind gives the rest."""

        def __init__(self, source):
            pass

        def ready(self, sampling):
            return {}, {}

        def run(self, batch, sampling):
            seen = tmp_path / "seen"
            first = not seen.exists()
            with seen.open("a") as file:
                file.write(" ".join(x.item.id for x in batch.jobs) + "\n")
            for job in batch.jobs:
                yield replace(made, item=job.item.id)
                time.sleep(300 if first else 0)

    monkeypatch.setattr(workers, "Worker", Slow)
    batches = plan([Item(f"{i}", "", ("1",)) for i in range(3)], [Cell("rkv 24", ra.Config(budget=24))], 1, 3)
    pool, found = [], []
    for each in workers.run_on_ray(Source(None), batches, Sampling(), workers=1, started=pool.extend):
        if not found:
            ray.kill(pool[0], no_restart=True)
        found.append(each.item)
    assert found == ["0", "1", "2"]
    assert (tmp_path / "seen").read_text().splitlines() == ["0 1 2", "1 2"]


@pytest.mark.slow
def test_an_error_of_the_model_is_raised_as_it_is(folder):
    pytest.importorskip("ray")
    empty = [Item("empty", "", ("1",))]
    batches = plan(empty, cells(["rkv"], [24], [], {}), 1, 2)
    with pytest.raises(ValueError, match="no token"):
        list(run_on_ray(Source(folder), batches, Sampling(max_new_tokens=3), workers=1))
