"""The parts of a study as one again."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from reasonalloc.files import LOCK, Json, replace_bytes
from reasonalloc.lab.evaluate import equal_bytes
from reasonalloc.lab.evaluate.records import SETTINGS, Record, Records, read, read_settings, there
from reasonalloc.lab.evaluate.shard import NAME, Shard
from reasonalloc.policy.wave import WaveProfile

_TIMED = ("seconds",)  # differ when a chain is made again

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Merged:
    """What became one folder. chains: by cell. again: chains that were in several shards, the same in each. missing:
    shards that others' names speak of and that are not there."""

    folder: Path
    shards: list[Path]
    chains: dict[str, int]
    again: int
    missing: list[str]

    def as_json(self) -> Json:
        return {**vars(self), "folder": str(self.folder), "shards": [str(x) for x in self.shards]}


@dataclass(frozen=True)
class _Part:
    """A folder of chains, read."""

    path: Path
    settings: Json
    records: list[Record]
    runs: list[Json]
    waves: dict[str, Path]
    matches: dict[str, equal_bytes.Match]


def merge(folder: str | Path, sources: Sequence[str | Path] = ()) -> list[Merged]:
    """Puts the chains of shards into one folder, from which the study goes on or makes its tables.

    folder: where they go, with what it holds already. sources: folders of shards, or above them; none: the shards
    inside of `folder`. A source may hold several studies, as those of `reasonalloc paper` do; each goes to its own
    place.

    Raises ValueError, with nothing changed, for shards made with other settings, of another revision of the model, with
    other cells of one name or other problems of one name; for a chain that two of them have and that differs; for a
    shard that is still being written; and where there is none.
    """
    target = Path(folder)
    jobs = [(Records(target / place), _parts(paths)) for place, paths in sorted(_found(target, sources).items())]
    try:
        for records, _ in jobs:
            if records.folder.is_dir():
                records.lock()
        checked = [(records, parts, *_checked(_own(records.folder) + parts)) for records, parts in jobs]
        return [_written(*each) for each in checked]
    finally:
        for records, _ in jobs:
            records.close()


def _found(target: Path, sources: Sequence[str | Path]) -> dict[Path, list[Path]]:
    """Folders of shards by the place, below the target, where they go."""
    found: dict[Path, list[Path]] = {}
    for root in map(Path, sources or [target]):
        shards = [
            x.parent for x in sorted(root.rglob(SETTINGS), key=_order) if _is_part(x.parent, target, bool(sources))
        ]
        if not shards:
            raise ValueError(f"{root} has no chains of a shard: name the folders that --shard wrote to")
        for path in shards:
            place = Path(*[x for x in path.relative_to(root).parts if not NAME.fullmatch(x)])
            if path not in found.setdefault(place, []):
                found[place].append(path)
    return found


def _order(path: Path) -> list[tuple[int, str]]:
    """Shard 10 after shard 9."""
    return [(int(found[1]) if (found := NAME.fullmatch(x)) else 0, x) for x in path.parts]


def _is_part(path: Path, target: Path, named: bool) -> bool:
    if NAME.fullmatch(path.name):
        return True
    return named and path.resolve() != target.resolve() and there(path) is not None


def _parts(paths: Sequence[Path]) -> list[_Part]:
    found = []
    for path in paths:
        _refuse_if_written(path)
        found.append(_part(path))
    return found


def _own(place: Path) -> list[_Part]:
    """What is in the place already."""
    return [_part(place)] if (place / SETTINGS).is_file() and there(place) is not None else []


def _part(path: Path) -> _Part:
    file = there(path)
    records = [] if file is None else list(read(file, torn=True))
    folders = [path.parent, path] if NAME.fullmatch(path.name) else [path]
    waves = {x.name: x for folder in folders for x in sorted(folder.glob("wave-*.json"))}
    matches = {key: x for folder in folders for key, x in equal_bytes.kept(folder / equal_bytes.FILE).items()}
    return _Part(path, read_settings(path), records, Records(path).runs(), waves, matches)


def _refuse_if_written(path: Path) -> None:
    try:
        lock = os.open(path / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(f"another run writes to {path}: merge when it has ended") from error
    finally:
        os.close(lock)


def _checked(parts: Sequence[_Part]) -> tuple[dict[Key, Record], int]:
    """All chains, after every check, and how many were there more than once."""
    first = parts[0]
    for other in parts[1:]:
        names = sorted({**first.settings, **other.settings})
        differ = [x for x in names if first.settings.get(x) != other.settings.get(x)]
        if differ:
            differences = "; ".join(f"{x} {other.settings.get(x)!r}, not {first.settings.get(x)!r}" for x in differ)
            raise ValueError(f"{other.path} was made with other settings than {first.path}: {differences}")
    _same_revision(parts)
    _same_waves(parts)
    _matches(parts)
    return _together(parts)


def _same_revision(parts: Sequence[_Part]) -> None:
    """Of a model of the Hub: its name says nothing of that."""
    revisions = {run["revision"]: part.path for part in parts for run in part.runs if run.get("revision")}
    if len(revisions) > 1:
        differences = "; ".join(f"{path} {revision}" for revision, path in revisions.items())
        raise ValueError(f"shards are of different revisions of the model: {differences}")


def _same_waves(parts: Sequence[_Part]) -> None:
    first: dict[str, Path] = {}
    for part in parts:
        for name, path in part.waves.items():
            other = first.setdefault(name, path)
            if other != path and WaveProfile.load(other).demand != WaveProfile.load(path).demand:
                raise ValueError(f"{path} is another wave than {other}: a study has one, measured once (or --profile)")


def _matches(parts: Sequence[_Part]) -> dict[str, equal_bytes.Match]:
    """Budgets of equal bytes: searched for again, on another machine, they might be others."""
    found: dict[str, equal_bytes.Match] = {}
    for part in parts:
        for key, match in part.matches.items():
            if (size := found.setdefault(key, match).size) != match.size:
                raise ValueError(
                    f"{part.path}: {match.cell} takes equal bytes at {match.size:g}, in a shard before it at {size:g}:"
                    f" a study searches once, so put one shard's {equal_bytes.FILE} beside the others"
                )
    return found


def _together(parts: Sequence[_Part]) -> tuple[dict[Key, Record], int]:
    found: dict[Key, Record] = {}
    where: dict[Key, Path] = {}
    cells: dict[str, tuple[str, Path]] = {}
    asked: dict[str, tuple[str, Path]] = {}
    again = 0
    for part in parts:
        for record in part.records:
            _one(cells, record.cell, record.config, part.path, "the cell", "other cache settings")
            _one(asked, record.item, record.asked, part.path, "the problem", "another text or other answers")
            other = found.setdefault(record.key, record)
            differ = [x.name for x in fields(Record) if getattr(other, x.name) != getattr(record, x.name)]
            if set(differ) - set(_TIMED):
                raise ValueError(
                    f"{part.path} has another chain than {where[record.key]} of {record.cell}, {record.item}, sample"
                    f" {record.sample}: they differ in {', '.join(x for x in differ if x not in _TIMED)}"
                )
            again += record.key in where and where[record.key] != part.path
            where.setdefault(record.key, part.path)
    return found, again


def _one(first: dict[str, tuple[str, Path]], name: str, value: str, path: Path, what: str, how: str) -> None:
    """A name stands for one thing in all shards."""
    other, where = first.setdefault(name, (value, path))
    if other != value:
        raise ValueError(f"{path}: {what} {name!r} has {how} than in {where} (hash {value}, not {other})")


def _written(records: Records, parts: Sequence[_Part], chains: Mapping[Key, Record], again: int) -> Merged:
    records.open(parts[0].settings)
    records.replace(chains.values(), [run for part in parts for run in part.runs])
    for part in parts:
        for name, path in part.waves.items():
            if not (records.folder / name).exists():
                replace_bytes(records.folder / name, path.read_bytes())
    path = records.folder / equal_bytes.FILE
    if matches := equal_bytes.kept(path) | _matches(parts):
        equal_bytes.keep(path, matches)
    counts = Counter(x.cell for x in chains.values())
    return Merged(records.folder, [x.path for x in parts], dict(counts), again, _missing(x.path.name for x in parts))


def _missing(names: Iterable[str]) -> list[str]:
    named = {Shard(int(x[1]), int(x[2])) for x in map(NAME.fullmatch, names) if x}
    every = [Shard(i, n) for n in sorted({x.count for x in named}) for i in range(1, n + 1)]
    return [x.folder for x in every if x not in named]
