"""A study's summary: rows, comparisons, warnings, what is known of a model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from accuracy import CELLS, record

from reasonalloc.lab.evaluate import expected
from reasonalloc.lab.evaluate.given import Results
from reasonalloc.lab.evaluate.study import write
from reasonalloc.lab.evaluate.summary import Summary, summarise

pytest.importorskip("scipy")


def test_summary():
    records = [record("full", str(i), 2) for i in range(5)]
    records += [record("rkv 24", str(i), i % 2) for i in range(5)]
    records += [record("reasonalloc 24", str(i), 1, tokens=20, finish="length") for i in range(5)]
    full, rkv, ours = summarise(records, [x.name for x in CELLS], expected={"": 1.0}).rows
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
    """Within five points of what the model is known for, on the problems for which something is known."""
    good = [record("full", str(i), 2) for i in range(5)]
    bad = [record("full", str(i), 0) for i in range(5)]
    assert not summarise(good, ["full"], expected={"": 0.95}).warnings
    assert "known for 95.0%" in summarise(bad, ["full"], expected={"": 0.95}).warnings[0]
    assert "no published" in summarise(good, ["full"]).warnings[0]
    assert "not measured" in summarise([record("rkv 24", "0", 2)], ["rkv 24"], expected={"": 1.0}).warnings[0]
    mixed = good[:4] + bad[4:]
    assert not summarise(mixed, ["full"], expected={"": 0.849}).warnings
    assert "scores 80.0%" in summarise(mixed, ["full"], expected={"": 0.851}).warnings[0]
    assert not summarise(mixed, ["full"], expected={"a": 1.0, "b": 0.5}).warnings  # three problems and two
    unknown = "no known score to compare the full cache with on a"
    assert summarise(mixed, ["full"], expected={"b": 0.5}).warnings == [unknown]
    found = summarise(mixed, ["full"], expected={"b": 1.0}).warnings
    assert found[0] == unknown and "scores 50.0%" in found[1] and "on 2 problems" in found[1]
    assert summarise(good, ["full"], expected={"": 1.0}, faults=["a fault"]).warnings == ["a fault"]
    table = summarise(bad, ["full"], expected={"": 0.95})
    assert "Warning" in table.markdown() and "known for" in str(table.table().caption)


def test_a_full_cache_that_is_cut_off_is_warned_of():
    def rows(finishes):
        return [record("full", str(i), 2, tokens=30 + i, finish=x) for i, x in enumerate(finishes)]

    known = {"": 1.0}
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


def test_known_scores():
    assert expected.scores("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "math500", [""]) == {"": 0.891}
    assert expected.scores("someone/else", "math500", [""]) is None
    assert expected.scores(None, "ledger", ["plain"]) is None
    measured = expected.scores("ledger-135m", "ledger", ["plain"])
    assert measured is not None and 0.9 < measured["plain"] <= 1.0


def test_the_picture_has_a_line_for_each_method():
    """Methods without a size are not the full cache; a share of the tokens has no place on an axis of budgets."""
    pytest.importorskip("matplotlib")
    from reasonalloc.lab import plots

    sizes = {"full": (None, None), "rlkv": (None, None), "duo": (None, None), "rkv 256": (256, None),
             "rkv 0.1x": (None, 0.1)}  # fmt: skip
    records = [
        replace(record(cell, str(i), i % 3), budget=budget, ratio=ratio)
        for cell, (budget, ratio) in sizes.items()
        for i in range(4)
    ]
    over_budget, over_bytes = plots.accuracy(summarise(records, list(sizes))).axes
    assert over_bytes.get_legend_handles_labels()[1] == ["full", "rlkv", "duo", "rkv"]
    assert over_budget.get_legend_handles_labels()[1] == ["full", "rkv"]
    assert [x.get_text() for x in over_budget.get_xticklabels()] == ["256"] and over_budget.get_xlim()[0] > 200
    ratios = [x for x in records if x.ratio is not None or x.cell in ("full", "duo")]
    shares, _ = plots.accuracy(summarise(ratios, list(sizes))).axes
    assert [x.get_text() for x in shares.get_xticklabels()] == ["0.1"]
    unsized = [x for x in records if x.cell in ("full", "duo")]
    assert not plots.accuracy(summarise(unsized, list(sizes))).axes[0].get_xticks().size


def test_a_name_with_a_dot_is_whole(tmp_path):
    write(summarise([record("full", "0", 1)], ["full"]), tmp_path / "qwen2.5-vs")
    assert {x.name for x in tmp_path.iterdir()} == {f"qwen2.5-vs.{x}" for x in ("json", "md", "png")}
    results = Results(summarise([record("full", "0", 1)], ["full"]), [])
    for name in ("settings", "../up", ""):
        with pytest.raises(ValueError, match="name"):
            results.save(tmp_path, name)
