"""Raw generations on disk: JSON lines that a kill at any moment leaves whole, and that a later run goes on from."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reasonalloc.fields import build
from reasonalloc.files import Json, encoded, json_lines, lock_folder, read_json, replace_bytes, replace_text

FILE = "generations.jsonl"
PACKED = FILE + ".gz"
SETTINGS = "settings.json"
RUNS = "runs.json"
FINISHES = ("stop", "length")


@dataclass(frozen=True)
class Record:
    """One chain of one problem.

    cell: what was varied, as `Cell.name` says. config: hash of the cache's settings. asked: hash of prompt and right
    answers. sample: 0 to samples - 1. finish: "stop" or "length". answers: what stood in its boxes; right: one for each
    answer asked; by_rule: the same by other rules for which boxes count; again: answers boxed more than once. slots:
    mean of a KV head at the end. mean_bytes, peak_bytes: of its pages after each step (within a prefill, one layer at a
    time holds the whole prompt). seconds: its share of the steps of its batch.
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
    by_rule: dict[str, list[bool]] = field(default_factory=dict)
    again: int = 0

    def __post_init__(self) -> None:
        if not self.right:
            raise ValueError(f"{self.item}: a chain is graded on at least one answer, right is []")
        if self.finish not in FINISHES:
            raise ValueError(f"{self.item}: finish must be one of {', '.join(FINISHES)}, got {self.finish!r}")
        for name in ("sample", "prompt_tokens", "tokens", "peak_bytes", "mean_bytes", "slots", "seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{self.item}: {name} must be a number from 0, got {getattr(self, name)}")

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
        self.by_key: dict[tuple[str, str, int], Record] = {}
        self._release: Callable[[], object] | None = None

    def would_open(self, settings: Json) -> None:
        """Refuses of these settings what `open` would, without making or locking anything."""
        if there(self.folder) is None:
            self._refuse_foreign(settings)
        elif (self.folder / SETTINGS).is_file():
            self._refuse_others(settings, settings)

    def _refuse_foreign(self, settings: Json) -> None:
        """ValueError where files that would be written over are not those of an evaluation that made nothing yet."""
        path, runs = self.folder / SETTINGS, self.folder / RUNS
        missing = sorted(set(settings) - set(read_settings(self.folder))) if path.is_file() else []
        if missing:
            raise ValueError(f"{path} is of something else, it does not say {', '.join(missing)}: take another folder")
        if runs.is_file() and not path.is_file():
            raise ValueError(f"{runs} is of something else, there is no {SETTINGS}: take another folder")

    def _refuse_others(self, settings: Json, names: Iterable[str] | None = None) -> None:
        """ValueError where the folder's are not these; names: of those that are compared, None for all."""
        earlier = read_settings(self.folder)
        other = sorted(k for k in names or {**earlier, **settings} if earlier.get(k) != settings.get(k))
        if other:
            differences = "; ".join(f"{k} {earlier.get(k)!r}, now {settings.get(k)!r}" for k in other)
            raise ValueError(
                f"{self.folder} has generations made with other settings ({differences}): take another folder"
            )

    def open(self, settings: Json) -> None:
        """Makes the folder or goes on in it, from what `pack` left if that is all there is. settings: what all records
        must have in common.

        Raises ValueError, with nothing changed, if the folder's records were made with others, or nobody knows how, or
        if its files are of something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock()
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: Json) -> None:
        path, packed = self.folder / SETTINGS, self.folder / PACKED
        self._mend()
        found = there(self.folder)
        if found is not None:
            if not path.is_file():
                raise ValueError(
                    f"{self.folder} has generations, and no {SETTINGS} to say how they were made: take another folder"
                )
            self._refuse_others(settings)
        else:
            self._refuse_foreign(settings)
            (self.folder / RUNS).unlink(missing_ok=True)
            replace_text(path, json.dumps(settings, indent=1) + "\n")
        if found == packed:
            replace_bytes(self.path, b"".join(map(_line, read(packed))))
        self.by_key = {x.key: x for x in read(self.path)} if self.path.is_file() else {}

    def load(self, settings: Json) -> None:
        """Reads what is there, packed or not, to look at alone; ValueError as `open`."""
        path = there(self.folder)
        if path is not None:
            self._refuse_others(settings)
            self.by_key = {x.key: x for x in read(path, torn=True)}

    def runs(self) -> list[Json]:
        """Those that made the records, the oldest first, as `add_run` was given them."""
        path = self.folder / RUNS
        if not path.is_file():
            return []
        runs = read_json(path, "list of runs")
        if not isinstance(runs, list) or not all(isinstance(x, dict) for x in runs):
            raise ValueError(f"{path} is not a list of runs: it must be a list of objects")
        return runs

    def add_run(self, made: Json) -> None:
        """made: command, time, machine, versions; JSON-ready."""
        replace_text(self.folder / RUNS, json.dumps([*self.runs(), made], indent=1) + "\n")

    def lock(self) -> None:
        """Until `close`, or until this object or its process ends; ValueError if another one writes here."""
        if self._release is None:
            self._release = lock_folder(self.folder, self)

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
        if record.key in self.by_key:
            return
        line = _line(record)  # before the file is opened: a text may have no bytes
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.by_key[record.key] = record

    def replace(self, records: Iterable[Record], runs: Sequence[Json]) -> None:
        """Has these records in place of its own, and runs that it does not know yet beside its own."""
        changed = {x.key: x for x in records}
        replace_bytes(self.path, b"".join(map(_line, changed.values())))
        earlier = self.runs()
        new = [x for i, x in enumerate(runs) if x not in earlier and x not in runs[:i]]
        replace_text(self.folder / RUNS, json.dumps([*earlier, *new], indent=1) + "\n")
        self.by_key = changed

    def change(self, how: Callable[[Record], Record]) -> None:
        """Rewrites all records, whole or not at all. how: a record as it shall be."""
        changed = {key: how(record) for key, record in self.by_key.items()}
        replace_bytes(self.path, b"".join(map(_line, changed.values())))
        self.by_key = changed

    def check(self, configs: dict[str, str], asked: dict[str, str]) -> None:
        """configs: hash by cell. asked: hash by item. ValueError if records were made with others."""
        for record in self.by_key.values():
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


def there(folder: Path) -> Path | None:
    """The file of a folder's records, if it has any; the packed one where there is no other."""
    return next((x for x in (folder / FILE, folder / PACKED) if x.is_file() and x.stat().st_size), None)


def read_settings(folder: Path) -> Json:
    """What all records of a folder have in common."""
    path, kind = folder / SETTINGS, "file of settings"
    found = read_json(path, kind)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a {kind}: it must be an object, got {type(found).__name__}")
    return found


def _line(record: Record) -> bytes:
    return encoded(json.dumps(asdict(record), ensure_ascii=False) + "\n", record.item)


def read(path: str | Path, *, torn: bool = False) -> Iterator[Record]:
    """The records of a file, .gz or not. torn: leave out a last line that a kill left without its end. Raises
    ValueError naming the line that is none or damaged."""
    for where, row in json_lines(path, torn=torn):
        try:
            record = build(Record, row, "it")
        except ValueError as error:
            raise ValueError(f"{where} is not a generation ({error})") from error
        yield record


def pack(records: Iterable[Record], path: str | Path) -> None:
    """Writes records as .jsonl.gz, whole or not at all, the same bytes for the same records."""
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as file:
        for record in records:
            file.write(_line(record))
    replace_bytes(path, packed.getvalue())
