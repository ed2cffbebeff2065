"""Chains in a folder: read back as they were written, damaged ones refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from accuracy import record

from reasonalloc.lab.evaluate.records import Records, pack, read


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


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"settings.json": '{"objective": "rlkv", "seed": 0}'}, r"settings\.json is of something else.*not say model:"),
        ({"runs.json": '["precious"]'}, r"runs\.json is of something else, there is no settings\.json"),
        ({"settings.json": "[]"}, r"settings\.json is not a file of settings"),
    ],
)
def test_files_of_something_else_are_not_written_over(files, told, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    records = Records(tmp_path)
    for refuse in (records.would_open, records.open):
        with pytest.raises(ValueError, match=told):
            refuse({"model": "m", "seed": 0})
    assert {x.name: x.read_text() for x in tmp_path.iterdir() if x.name != ".lock"} == files
    Records(tmp_path).lock()  # another one may: what refused holds it no longer


def test_packed_chains_are_read_where_the_plain_file_is_empty(tmp_path):
    records = Records(tmp_path)
    records.open({"a": 1})
    pack([record("full", "0", 1)], tmp_path / "generations.jsonl.gz")
    records.close()
    for torn in ("", '{"cell": "fu'):
        (tmp_path / "generations.jsonl").write_text(torn)
        with pytest.raises(ValueError, match="other settings"):
            Records(tmp_path).open({"a": 2})
        again = Records(tmp_path)
        again.open({"a": 1})
        assert list(again.by_key.values()) == [record("full", "0", 1)]
        again.close()


def test_scripts_read_what_is_newer_and_any_line_end(tmp_path, monkeypatch):
    """A packed file may be from before the last chains; they are the same by the scripts without the package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks" / "studies"))
    import chains

    odd = replace(record("full", "1", 1), text="a\u2028b\x85c")
    records = Records(tmp_path)
    records.open({"a": 1})
    records.add(record("full", "0", 1))
    pack(records.by_key.values(), tmp_path / "generations.jsonl.gz")
    records.add(odd)
    records.close()
    assert [x["text"] for x in chains.records(tmp_path)] == ["", odd.text]
    pack([odd], tmp_path / "generations.jsonl.gz")
    (tmp_path / "generations.jsonl").write_text("")
    assert [x["text"] for x in chains.records(tmp_path)] == [odd.text]
