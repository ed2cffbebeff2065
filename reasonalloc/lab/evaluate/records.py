"""Raw generations on disk: JSON lines that a kill at any moment leaves whole, and that a later run goes on from."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from reasonalloc.files import replace_text

FILE = "generations.jsonl"
PACKED = FILE + ".gz"
SETTINGS = "settings.json"
RUNS = "runs.json"


@dataclass(frozen=True)
class Record:
    """One chain of one problem.

    cell: what was varied, as `Cell.name` says. config: hash of the cache's settings. asked: hash of prompt and right
    answers. sample: 0 to samples - 1. finish: "stop" or "length". answers: what its boxes held; right: one for each
    answer asked. slots: mean of a KV head at the end. mean_bytes, peak_bytes: of its pages after each
    step (within a prefill, one layer at a time holds the whole prompt). seconds: its
    share of the steps of its batch.
    """

    cell: str
    config: str
    asked: str
    item: str
    group: str
    sample: int
    seed: int
    prompt_tokens: int
    tokens: int
    finish: str
    text: str
    answers: list[str]
    right: list[bool]
    budget: int | None
    ratio: float | None
    slots: float
    mean_bytes: float
    peak_bytes: int
    seconds: float

    @property
    def key(self) -> tuple[str, str, int]:
        return self.cell, self.item, self.sample

    @property
    def score(self) -> float:
        """Share of its answers that are right."""
        return sum(self.right) / len(self.right)


class Records:
    """The records of a folder. One writer at a time; a line is on disk when `add` returns."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE
        self.known: dict[tuple[str, str, int], Record] = {}
        self._release: weakref.finalize[..., Any] | None = None

    def open(self, settings: dict[str, Any]) -> None:
        """Makes the folder or goes on in it, from what `pack` left if that is all there is. settings: what all records
        must have in common.

        Raises ValueError, with nothing changed, if the folder's records were made with others.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        path, packed = self.folder / SETTINGS, self.folder / PACKED
        unpack = packed.is_file() and not self.path.is_file()
        self._mend()
        if path.is_file() and (unpack or (self.path.is_file() and self.path.stat().st_size)):
            known = json.loads(path.read_text(encoding="utf-8"))
            other = [k for k in {**known, **settings} if known.get(k) != settings.get(k)]
            if other:
                told = "; ".join(f"{k} {known.get(k)!r}, now {settings.get(k)!r}" for k in sorted(other))
                raise ValueError(
                    f"{self.folder} has generations made with other settings ({told}): take another folder"
                )
        else:
            (self.folder / RUNS).unlink(missing_ok=True)
            replace_text(path, json.dumps(settings, indent=1) + "\n")
        if unpack:
            replace_text(self.path, "".join(map(_line, read(packed))))
        self.known = {x.key: x for x in read(self.path)} if self.path.is_file() else {}

    def runs(self) -> list[dict[str, Any]]:
        """Those that made the records, the oldest first, as `note_run` was given them."""
        path = self.folder / RUNS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    def note_run(self, made: dict[str, Any]) -> None:
        """made: command, time, machine, versions; JSON-ready."""
        replace_text(self.folder / RUNS, json.dumps([*self.runs(), made], indent=1) + "\n")

    def _lock(self) -> None:
        """Until `close`, or until this object or its process ends; ValueError if another one writes here."""
        if self._release is not None:
            return
        held = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(held)
            raise ValueError(f"another run writes to {self.folder}: wait for it, or take another folder") from error
        self._release = weakref.finalize(self, os.close, held)

    def close(self) -> None:
        """Lets others write."""
        if self._release is not None:
            self._release()
            self._release = None

    def _mend(self) -> None:
        """Cuts off a last line that a kill left torn."""
        if not self.path.is_file():
            return
        with self.path.open("r+b") as file:
            data = file.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                file.truncate(whole)

    def add(self, record: Record) -> None:
        """Appends a record unless there is one of its key."""
        if record.key in self.known:
            return
        with self.path.open("ab") as file:
            file.write(_line(record).encode())
            file.flush()
            os.fsync(file.fileno())
        self.known[record.key] = record

    def change(self, how: Callable[[Record], Record]) -> None:
        """Rewrites all records, whole or not at all. how: a record as it shall be."""
        changed = {key: how(record) for key, record in self.known.items()}
        replace_text(self.path, "".join(map(_line, changed.values())))
        self.known = changed

    def check(self, configs: dict[str, str], asked: dict[str, str]) -> None:
        """configs: hash by cell. asked: hash by item. ValueError if records were made with others."""
        for record in self.known.values():
            if asked.get(record.item, record.asked) != record.asked:
                raise ValueError(
                    f"{self.folder}: {record.item} was another problem when it was answered (prompt and answers had"
                    f" the hash {record.asked}, now {asked[record.item]}): take another folder"
                )
            if configs.get(record.cell, record.config) != record.config:
                raise ValueError(
                    f"{self.folder}: {record.cell} was made with other cache settings (its config hash is"
                    f" {record.config}, now {configs[record.cell]}): take another folder"
                )


def _line(record: Record) -> str:
    return json.dumps(asdict(record), ensure_ascii=False) + "\n"


def read(path: str | Path) -> Iterator[Record]:
    """The records of a file, .gz or not. Raises ValueError naming the line that is none."""
    path = Path(path)
    names = {f.name for f in fields(Record)}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if set(row) != names:
                    raise ValueError(f"fields {sorted(set(row) ^ names)}")
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number} is not a generation ({error})") from error
            yield Record(**row)


def pack(records: Iterable[Record], path: str | Path) -> None:
    """Writes records as .jsonl.gz, the same bytes for the same records."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for record in records:
            file.write(_line(record).encode())
