"""Training of the reasoner on a tiny model: what a step sees, that a run that stopped goes on as if it had not."""

from __future__ import annotations

import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from characters import Characters
from elsewhere import Elsewhere, needs_meta
from models import SMOL_FILE, build, smol_directory
from transformers import AutoTokenizer

from reasonalloc.lab.models import REASONERS, missing_for_embedded

pytest.importorskip("peft")
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import batches
import scores
import train as training
from targets import targets


@pytest.fixture
def tiny_model(monkeypatch):
    def load(dtype, device_map=None):
        return build("llama", torch.bfloat16).to(device_map or "cpu"), Characters(), "tiny"

    monkeypatch.setattr(training.models, "load", load)


SETTINGS = training.Settings(
    tokens=20_000, longest=2000, shortest=1500, batch_tokens=2000, rank=2, rate=1e-2, warmup_steps=2, decay=0.3
)


def log(folder):
    return [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]


def test_a_batch():
    made = batches.batch(Characters(), 0, 3, 4000, 6000)
    again = batches.batch(Characters(), 0, 3, 4000, 6000)
    assert torch.equal(made.inputs, again.inputs) and made.dials == again.dials
    counted = made.labels != -100
    assert torch.equal(made.inputs[counted], made.labels[counted])  # labels are the inputs, shifted by the loss
    assert (counted.sum(1) > 0).all() and not counted[:, 0].any()
    assert made.tokens <= 6000 and made.inputs.shape[1] <= 4100


def test_sums():
    made = batches.batch(Characters(), 0, 1, 2000, 1000, drill=1.0)
    assert made.dials is None and made.inputs.shape == (4, batches.DRILL_TOKENS)
    counted = made.labels != -100
    assert 0.05 < counted.float().mean() < 0.3 and torch.equal(made.inputs[counted], made.labels[counted])
    rng = random.Random(0)
    for text in (batches.a_sum(rng) for _ in range(200)):
        left, right = re.search(r"(\d+ [-+*] \d+) = (\d+)\.$", text).groups()
        assert eval(left) == int(right) and 2 <= int(right) <= batches.MOST


def test_long_sequences_come_later():
    short = [batches.batch(Characters(), 0, i, 1200, 100).inputs.shape[1] for i in range(20)]
    long = [batches.batch(Characters(), 0, i, 9000, 100).inputs.shape[1] for i in range(20)]
    assert max(short) <= 1200 < max(long) <= 9000


def test_the_rate():
    rates = [training.rate_at(SETTINGS, i, i / 100) for i in range(101)]
    assert rates[0] == SETTINGS.rate / 2 and rates[50] == SETTINGS.rate
    assert rates[-1] == pytest.approx(0.02 * SETTINGS.rate) and rates[85] < SETTINGS.rate


def test_a_run_that_is_another_is_refused(tiny_model, tmp_path):
    training.train(tmp_path, SETTINGS, minutes=0)
    before = {x.name: x.read_bytes() for x in tmp_path.iterdir() if x.is_file()}
    with pytest.raises(ValueError, match=r"rate 0\.01, now 0\.02"):
        training.train(tmp_path, replace(SETTINGS, rate=0.02))
    assert before == {x.name: x.read_bytes() for x in tmp_path.iterdir() if x.is_file()}
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "se')  # a kill tears a line
    training.train(tmp_path, replace(SETTINGS, tokens=30_000), minutes=0)
    assert [x["step"] for x in log(tmp_path)] == [1, 2]


def test_scores_are_those_of_the_full_cache(tmp_path):
    rows = [{"cell": "full", "groups": {"plain": 0.9}, "problems": 8}]
    made = dict.fromkeys(("weights", "dtype", "seed", "max_new_tokens", "temperature", "runs"), 0)
    for task, cell in (("ledger", "full"), ("search", "full"), ("math500", "full"), ("ledger", "rkv 24")):
        rows[0]["cell"] = cell
        (tmp_path / "accuracy.json").write_text(json.dumps({"rows": rows, "provenance": {**made, "task": task}}))
        if task in REASONERS and cell == "full":
            reasoner, known = scores.scores(tmp_path)
            assert reasoner == f"{task}-135m" and known["accuracy"] == {"plain": 0.9}
        else:
            with pytest.raises(ValueError, match="no evaluation"):
                scores.scores(tmp_path)


def test_it_learns_and_goes_on_where_it_stopped(tiny_model, tmp_path):
    training.train(tmp_path / "whole", SETTINGS)
    whole = log(tmp_path / "whole")
    assert whole[-1]["seen"] >= SETTINGS.tokens and whole[-1]["loss"] < whole[0]["loss"]
    while not log_of(tmp_path / "parts") or log_of(tmp_path / "parts")[-1]["seen"] < SETTINGS.tokens:
        training.train(tmp_path / "parts", SETTINGS, minutes=0)  # stops after a step
    parts = log(tmp_path / "parts")
    assert [x["loss"] for x in parts] == [x["loss"] for x in whole]
    assert {x.name for x in (tmp_path / "parts").iterdir()} == {
        "adapter",
        "checkpoint.safetensors",
        "log.jsonl",
        "settings.json",
    }


def test_loaders_change_nothing(tiny_model, tmp_path):
    settings = replace(SETTINGS, tokens=5000, batch_tokens=1000, shortest=800, longest=1200, by_steps=True)
    training.train(tmp_path / "whole", settings)
    training.train(tmp_path / "parts", settings, minutes=0)
    training.train(tmp_path / "parts", settings, loaders=1)
    whole, parts = log(tmp_path / "whole"), log(tmp_path / "parts")
    assert len(whole) > 3 and len({x["length"] for x in whole}) > 1
    for a, b in zip(whole, parts, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


@pytest.mark.parametrize(
    ("settings", "loaders", "reason"),
    [(SETTINGS, -1, "loaders must be from 0, got -1"), (SETTINGS, 1, "--by-steps")],
)
def test_loaders_that_cannot_be(tiny_model, tmp_path, settings, loaders, reason):
    with pytest.raises(ValueError, match=reason):
        training.train(tmp_path / "run", settings, loaders=loaders)
    assert not (tmp_path / "run").exists()


@needs_meta
def test_a_run_goes_on_on_a_device(tiny_model, tmp_path, monkeypatch):
    """All of a step lies there, and it waits once: transformers looks whether positions are those of one sequence."""
    waits, update = [], training.update

    def watched(*given):
        before = len(there.waits)
        figures = update(*given)
        waits.append(len(there.waits) - before)
        assert figures.is_meta
        return figures

    training.train(tmp_path, SETTINGS, minutes=0)
    monkeypatch.setattr(training, "update", watched)
    with Elsewhere() as there:
        training.train(tmp_path, SETTINGS, minutes=0, device="meta")
        training.train(tmp_path, SETTINGS, device="meta")
    assert len(log(tmp_path)) == 1 + len(waits) > 3 and max(waits) <= 1
    assert json.loads((tmp_path / "settings.json").read_text())["device"] == "meta"


def test_what_is_left_on_the_cpu_is_noticed(tiny_model):
    model = training.get_peft_model(
        build("llama", torch.bfloat16), training.LoraConfig(r=2, target_modules="all-linear")
    )
    given = targets(batches.batch(Characters(), 0, 0, 1500, 1500), 64)
    with Elsewhere(), pytest.raises(AssertionError, match="over tensors on"):
        training.learn(model.to("meta"), given)


def log_of(folder):
    return log(folder) if (folder / "log.jsonl").exists() else []


def test_layers_below_the_first_stay(tiny_model, tmp_path):
    from safetensors.torch import load_file

    training.train(tmp_path / "a", replace(SETTINGS, tokens=3000))
    training.train(tmp_path / "b", replace(SETTINGS, tokens=3000, first_layer=2, seed=5), tmp_path / "a" / "adapter")
    a, b = (load_file(tmp_path / x / "adapter" / "adapter_model.safetensors") for x in "ab")
    for name, x in a.items():
        assert x.dtype == torch.bfloat16
        assert torch.equal(x, b[name]) == (".layers.2." not in name)


@pytest.mark.skipif(bool(missing_for_embedded()), reason="the embedded model is not installed")
def test_batches_of_searches():
    tokenizer = AutoTokenizer.from_pretrained(smol_directory(), gguf_file=SMOL_FILE)
    for step, longest in ((0, 300), (3, 900), (5, 2500)):
        one, again = (batches.searches(tokenizer, 1, step, longest, 1500) for _ in range(2))
        assert torch.equal(one.inputs, again.inputs) and len(one.inputs[0]) >= 100
        first = one.labels[0] != -100
        assert one.inputs.shape[1] <= longest and one.inputs.numel() <= max(1500, longest)
        assert one.tokens == int((one.labels != -100).sum()) + sum(int((x != -100).nonzero()[0]) for x in one.labels)
        text = tokenizer.decode(one.labels[0][first])
        assert re.match(r"1: \d+ - \d+ ", text) and "Found: \\boxed{" in text
        worked = one.weights[0][first] == batches.SUM_WEIGHT
        told = "".join(tokenizer.decode([x]) for x, w in zip(one.labels[0][first].tolist(), worked, strict=True) if w)
        assert told.replace(" ", "") == re.sub(r"[^\d>=]", "", text.removesuffix(tokenizer.eos_token))
    others = [batches.searches(tokenizer, seed, 0, 300, 500).inputs for seed in (1, 2)]
    assert not torch.equal(*others)
    # Of six numbers no search has so many lines.
    assert batches.rows_of(tokenizer, "train/0/0", batches.search.Size(6, (1500, 2000)), 4000, 8000) == []


@pytest.mark.skipif(bool(missing_for_embedded()), reason="the embedded model is not installed")
def test_single_lines_of_searches():
    tokenizer = AutoTokenizer.from_pretrained(smol_directory(), gguf_file=SMOL_FILE)
    made = batches.searches(tokenizer, 0, 1, 2000, 1000, drill=1.0)
    assert made.inputs.shape == (4, batches.DRILL_TOKENS) and made.tokens == made.inputs.numel()
    line = re.compile(r"[1-6]: (?P<need>\d+) (?P<sign>[-+])(?P<larger>(?: \d+ >)*) (?P<number>\d+) = (?P<rest>\d+)")
    for ids, labels in zip(made.inputs, made.labels, strict=True):
        counted = labels != -100
        assert torch.equal(ids[counted], labels[counted])
        text = tokenizer.decode(ids)
        assert tokenizer(text, add_special_tokens=False).input_ids == ids.tolist()  # as in a chain
        worked = []
        for whole in text.split("\n")[:-1]:  # the last may be a part
            found = line.fullmatch(whole)
            need, number, rest = (int(found[x]) for x in ("need", "number", "rest"))
            larger = [int(x) for x in re.findall(r"\d+", found["larger"])]
            assert rest == (need - number if found["sign"] == "-" else need + number)
            assert larger == sorted(larger, reverse=True) and all(need < x <= batches.search.MOST for x in larger)
            worked.append(" >" * len(larger) + (" =" if found["sign"] == "-" else "") + f" {rest}\n")
        assert tokenizer.decode(ids[counted]).startswith("".join(worked)) and worked
    sizes = {batches.searches(tokenizer, 0, step, 900, 1000, drill=0.5).inputs.shape[1] for step in range(12)}
    assert batches.DRILL_TOKENS in sizes and len(sizes) > 3  # others are searches


def test_half_of_the_searches_are_of_the_sizes_that_are_judged():
    grid, rng = list(batches.search.GRID.values()), random.Random(0)
    drawn = [batches.draw_size(rng, 4352) for _ in range(300)]
    assert 120 < sum(x in grid for x in drawn) < 180 and all(x in drawn for x in grid)
    assert all(x.lines[1] <= 600 // batches.LINE_TOKENS for x in (batches.draw_size(rng, 600) for _ in range(100)))
