"""Files that are written whole or not at all, and JSON that may be anything."""

from __future__ import annotations

import gzip
import json
import os
import stat
import time
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonalloc import files
from reasonalloc.fields import build
from reasonalloc.files import json_lines, parse_json, read_json, read_saved, replace_text, visible

DEEP = "[" * 100_000
LONE = '{"a": "\\ud83d"}'

# ---- writing ----


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "a.json"
    replace_text(path, "one")
    os.chmod(path, 0o640)
    replace_text(path, "zwei ü")
    assert path.read_bytes() == "zwei ü".encode() and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["a.json"]


def test_a_new_file_has_the_mode_that_the_user_s_mask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_planted_links_are_not_followed(tmp_path, monkeypatch):
    """Neither at the name that was used once, NAME.PID, nor at the one that is used now, were it guessed."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"a.{os.getpid()}").symlink_to(victim)
    replace_text(tmp_path / "a.json", "x")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * (2 * n))
    guessed = tmp_path / f".a.json.{'0' * 16}.part"
    guessed.symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_text(tmp_path / "a.json", "y")
    assert victim.read_text() == "precious" and (tmp_path / "a.json").read_text() == "x" and guessed.is_symlink()


def test_a_link_to_a_file_is_replaced_not_what_it_points_to(tmp_path):
    (tmp_path / "other").write_text("other")
    (tmp_path / "a").symlink_to(tmp_path / "other")
    replace_text(tmp_path / "a", "new")
    assert (tmp_path / "other").read_text() == "other" and (tmp_path / "a").read_text() == "new"


def test_files_of_one_stem_have_parts_of_their_own(tmp_path, monkeypatch):
    """Both are written at the same time: the one begins while the other is not done."""
    fsync = os.fsync

    def other_comes_between(number):
        monkeypatch.setattr(os, "fsync", fsync)
        replace_text(tmp_path / "a.txt", "text")
        fsync(number)

    monkeypatch.setattr(os, "fsync", other_comes_between)
    replace_text(tmp_path / "a.json", "json")
    assert {x.name: x.read_text() for x in tmp_path.iterdir()} == {"a.json": "json", "a.txt": "text"}


def test_what_killed_runs_left_goes_with_the_next_write(tmp_path):
    old, new, others = (tmp_path / x for x in (f".a.{'0' * 16}.part", f".a.{'1' * 16}.part", f".b.{'2' * 16}.part"))
    for path in (old, new, others):
        path.write_text("half")
    for path in (old, others):
        os.utime(path, (time.time() - 7200,) * 2)
    replace_text(tmp_path / "a", "whole")
    assert sorted(x.name for x in tmp_path.iterdir()) == sorted(["a", new.name, others.name])


def test_a_failed_write_leaves_the_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a"
    replace_text(path, "old")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, "new")
    with pytest.raises(ValueError, match=r"a: character 2 is U\+D800, half of a surrogate pair"):
        replace_text(path, "ab\ud800")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_long_name_and_what_is_no_file(tmp_path):
    long = tmp_path / ("ä" * 127)
    replace_text(long, "x")
    assert long.read_text() == "x"
    replace_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(IsADirectoryError):
        replace_text(tmp_path, "x")


# ---- reading ----


def test_json_lines_end_with_a_line_feed_alone(tmp_path):
    """JSON strings may hold U+2028, U+2029 and U+0085 as they are, at which str.splitlines splits."""
    values = [{"text": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"}, [1], "ü"]
    lines = [json.dumps(x, ensure_ascii=False) for x in values]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\ufeff".encode() + "\r\n".join([lines[0], "", *lines[1:]]).encode())
    assert [x for _, x in json_lines(path)] == values
    assert [where for where, _ in json_lines(path)] == [f"{path}:{i}" for i in (1, 3, 4)]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [x for _, x in json_lines(packed)] == values


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "not JSON"),
        (DEEP.encode(), "nested too deep"),
        (b'"\xff"', "not JSON"),
        (LONE.encode(), r"U\+D83D, half of a surrogate pair"),
        (b"9" * 5000, "not JSON"),
    ],
)
def test_lines_that_are_no_json_are_named(line, told, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n" + line + b"\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{told}"):
        list(json_lines(path))
    path.write_bytes(line)
    with pytest.raises(ValueError, match=r"a\.jsonl is not a thing"):
        read_saved(path, "thing", 1)


def test_a_surrogate_pair_is_a_character(tmp_path):
    assert parse_json('"\\ud83d\\ude00"', "x") == "\U0001f600"


@pytest.mark.parametrize("cut", [5, 12, -9, -4])
def test_damaged_gzip_files(cut, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    path.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz"):
        list(json_lines(path))
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz"):
        list(json_lines(path))


def test_a_line_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_LINE", 1 << 20)
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(64):
            file.write(b" " * (1 << 20))
    assert path.stat().st_size < 1 << 17
    with pytest.raises(ValueError, match="longer than 1 MiB"):
        list(json_lines(path))


# ---- fields ----


@dataclass(frozen=True)
class Inner:
    x: float
    y: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    flags: list[bool]
    pairs: dict[str, tuple[int, float]]
    inner: Inner
    several: tuple[Inner, ...] = ()
    value: str | int | float = ""
    anything: dict[str, Any] = field(default_factory=dict)
    more: files.Json = field(default_factory=dict)


GOOD = Outer("a", [True], {"b": (1, 2.5)}, Inner(1.0), (Inner(2.0, 3),), 7, {"c": [None]}, {"d": {"e": 1.5}})


def test_what_was_written_is_what_is_built():
    assert build(Outer, json.loads(json.dumps(asdict(GOOD))), "it") == GOOD
    built = build(Inner, {"x": 3}, "it")
    assert built.x == 3.0 and isinstance(built.x, float)
    assert build(Inner, {"x": 1.0, "other": 1}, "it", others=True) == Inner(1.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": 1}, "it: name must be a text, got 1"),
        ({"flags": [1]}, r"it: flags\[0\] must be true or false, got 1"),
        ({"flags": "x"}, "it: flags must be a list"),
        ({"pairs": {"b": [True, 1.0]}}, r"it: pairs\['b'\]\[0\] must be a whole number, got True"),
        ({"pairs": {"b": [1]}}, r"it: pairs\['b'\] must be 2 values"),
        ({"inner": {"x": 10**400}}, "it: inner: x must be a number that a double can hold"),
        ({"inner": {"x": 1.0, "y": 1.5}}, "it: inner: y must be a whole number, got 1.5"),
        ({"inner": {"x": 1.0, "y": 2**63}}, "it: inner: y must be a whole number of 64 bits"),
        ({"inner": {}}, "it: inner has fields that are missing: 'x'"),
        ({"inner": None}, "it: inner must be an object, got None"),
        ({"value": []}, "it: value must be a number"),
        ({"more": []}, "it: more must be an object"),
        ({"new": 1}, "it has fields that are unknown: 'new'"),
    ],
)
def test_fields_of_other_types(change, told):
    with pytest.raises(ValueError, match=told):
        build(Outer, {**json.loads(json.dumps(asdict(GOOD))), **change}, "it")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["name", "flags", "x", "y", "b", "value"]), x),
    max_leaves=8,
)


@given(anything, st.sampled_from([x for x in asdict(GOOD)]))
def test_any_json_is_built_or_refused_by_a_value_error(value, name):
    for data in (value, {**asdict(GOOD), name: value}):
        try:
            assert isinstance(build(Outer, data, "it"), Outer)
        except ValueError as error:
            assert str(error).startswith("it")


# ---- text for a terminal ----


def test_control_characters_are_spelled_out():
    assert visible("a\x1b]0;title\x07\x9b2J\rb\u202ec") == "a\\x1b]0;title\\x07\\x9b2J\\x0db\\u202ec"
    assert visible("line\n\ttab ü \U0001f600") == "line\n\ttab ü \U0001f600"
    assert visible("\ud800") == "\\ud800"


def test_damaged_bytes_of_a_json_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(zlib.compress(b"{}"))
    with pytest.raises(ValueError, match="is not a thing"):
        read_json(path, "thing")
