"""Budgets at which methods take the same bytes, on the average over time: methods that are cut at other times or keep
other things beside their budget are not equal at equal budgets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from reasonalloc.config import Config
from reasonalloc.fields import build
from reasonalloc.files import read_json, replace_text
from reasonalloc.fingerprint import digest
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.table import Section
from reasonalloc.lab.tasks import Item
from reasonalloc.policy.size import parse_bytes

FILE = "equal-bytes.json"
SEED = 10_000  # added to the evaluation's own, for the pilot's problems
MOST_TRIES = 12


@dataclass(frozen=True)
class Try:
    """A size that was measured: slots of a KV head, or a ratio. mean_bytes: of a chain's pages, averaged over steps."""

    size: float
    mean_bytes: float


@dataclass(frozen=True)
class Match:
    """What was found for a cell. target: bytes. size: budget or ratio, the nearest of those tried. key: hash of all
    that the search depends on."""

    cell: str
    target: float
    size: float
    mean_bytes: float
    tolerance: float
    tries: tuple[Try, ...]
    key: str

    @property
    def off(self) -> float:
        """How far it is from the target, as a share of it."""
        return self.mean_bytes / self.target - 1

    @property
    def within(self) -> bool:
        return abs(self.off) <= self.tolerance


def search(
    measure: Callable[[float], float], target: float, start: float, least: float, whole: bool, tolerance: float
) -> list[Try]:
    """Sizes tried until one takes `target` bytes within the tolerance, or none between two neighbours is left.

    measure: bytes at a size, which grow with it but for noise. start: where to begin. least: the smallest that is
    allowed. whole: sizes are integers; otherwise they are ratios, at most 1.
    """
    tries: list[Try] = []
    size, low, high = start, None, None  # the nearest tries below and above the target
    while len(tries) < MOST_TRIES:
        tries.append(Try(size, measure(size)))
        level = high is not None and high.mean_bytes == tries[-1].mean_bytes  # as where all tokens are kept
        if abs(tries[-1].mean_bytes / target - 1) <= tolerance:
            break
        if tries[-1].mean_bytes < target:
            if low is not None and low.size < size and low.mean_bytes >= tries[-1].mean_bytes:
                break  # more slots take no more bytes: everything is kept
            low = tries[-1]
        else:
            high = tries[-1]
        size = _next(tries[-1], target, low, high) * (0.5 if level and low is None else 1.0)
        size = max(float(round(size)) if whole else min(size, 1.0), least)
        if any(size == x.size for x in tries):  # neighbours on both sides, or an end of the range
            break
    return tries


def nearest(tries: Sequence[Try], target: float) -> Try:
    """That whose bytes are nearest."""
    return min(tries, key=lambda x: abs(x.mean_bytes / target - 1))


def _next(last: Try, target: float, low: Try | None, high: Try | None) -> float:
    if low is None or high is None or low.size >= high.size or low.mean_bytes >= high.mean_bytes:
        return last.size * min(max(target / max(last.mean_bytes, 1.0), 0.25), 4.0)
    share = (target - low.mean_bytes) / (high.mean_bytes - low.mean_bytes)
    return low.size + (high.size - low.size) * min(max(share, 0.1), 0.9)  # from the ends, so that it closes in


def kept(path: Path) -> dict[str, Match]:
    """What a folder's file holds, by key; nothing where there is none."""
    saved = read_json(path, "list of matched budgets") if path.is_file() else []
    if not isinstance(saved, list):
        raise ValueError(f"{path} is not a list of matched budgets: it must be a list")
    return {x.key: x for x in (build(Match, one, f"{path}: a match") for one in saved)}


def keep(path: Path, matches: Mapping[str, Match]) -> None:
    replace_text(path, json.dumps([asdict(x) for x in matches.values()], indent=1) + "\n")


@dataclass
class Matcher:
    """Searches with the chains of a pilot; what it found is kept in a folder, so that a run that goes on takes it.

    measure: mean bytes of a cell's chains on the pilot's problems. pilot: those. folder: of the evaluation. about: what
    else the figures depend on. tolerance: of the bytes, a share. log: called with what is tried.
    """

    measure: Callable[[Cell], float]
    pilot: Sequence[Item]
    folder: Path
    about: dict[str, object]
    tolerance: float
    log: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self.path = self.folder / FILE
        self._matches = kept(self.path)

    def targets(self, wanted: str, cells: Sequence[Cell]) -> dict[str, tuple[float, Cell | None]]:
        """Bytes by the size that names of cells get: of one label's cells, or one size.

        wanted: a label, or a size like "12MB" of a chain's pages. cells: of that label, measured here.
        """
        if not cells:
            return {wanted.replace(" ", ""): (float(parse_bytes(wanted)), None)}
        return {f"{cell.name.split(maxsplit=1)[1]}@{cell.label}": (self._bytes(cell), cell) for cell in cells}

    def _key(self, cell: Cell, target: float | None) -> str:
        pilot = [x.hash for x in self.pilot]
        return digest([cell.name, cell.hash, pilot, self.about, None if target is None else [target, self.tolerance]])

    def _bytes(self, cell: Cell) -> float:
        """As measured; of a method that others are matched with."""
        key = self._key(cell, None)
        if key not in self._matches:
            found = self.measure(cell)
            self.log(f"{cell.name}: {found / 1e6:.3f} MB")
            size = float(cell.config.budget or cell.config.ratio or 0)
            self._keep(Match(cell.name, found, size, found, 0.0, (Try(size, found),), key))
        return self._matches[key].mean_bytes

    def match(self, name: str, config: Config, target: float, start: Config) -> tuple[Cell, Match]:
        """The cell of that name at the size that takes `target` bytes.

        config: all but the size. start: whose size is tried first.
        """
        whole = start.ratio is None

        def sized(size: float) -> Config:
            return replace(config, budget=int(size) if whole else None, ratio=None if whole else size, max_bytes=None)

        first = float(start.budget or 0) if whole else float(start.ratio or 0)
        key = self._key(Cell(name, sized(first)), target)
        if key not in self._matches:

            def measured(size: float) -> float:
                found = self.measure(Cell(name, sized(size)))
                self.log(f"{name}: {size:g} takes {found / 1e6:.3f} MB of {target / 1e6:.3f}")
                return found

            tries = search(measured, target, first, config.window + 1 if whole else 1e-3, whole, self.tolerance)
            best = nearest(tries, target)
            self._keep(Match(name, target, best.size, best.mean_bytes, self.tolerance, tuple(tries), key))
        found = self._matches[key]
        return Cell(name, sized(found.size)), found

    def _keep(self, match: Match) -> None:
        self._matches[match.key] = match
        keep(self.path, self._matches)


def matched(matcher: Matcher, wanted: str, cells: Sequence[Cell]) -> tuple[list[Cell], list[Match]]:
    """Cells of all labels at the bytes of one, or at a size in bytes, in place of those given; and what was found.

    wanted: one of the cells' labels, or bytes. cells: at the sizes where that one stays; those whose name says none,
    like the full cache, stay as they are. For a size in bytes each search starts at its cell's own.
    """
    fixed = [x for x in cells if x.label == wanted]
    if fixed and fixed[0].config.resolve().unlimited:
        raise ValueError(f"method {wanted!r} keeps every token: give a method with a budget, or a size like 12MB")
    result = [x for x in cells if x.name == x.label] + fixed
    others = {x.label: x.config for x in cells if x not in result}
    found: list[Match] = []
    if not others:
        return list(cells), found
    for size, (target, reference) in matcher.targets(wanted, fixed).items():
        for label, config in others.items():
            start = config if reference is None else reference.config
            cell, match = matcher.match(f"{label} {size}", config, target, start)
            result.append(cell)
            found.append(match)
    order = {x.label: i for i, x in reversed(list(enumerate(cells)))}
    return sorted(result, key=lambda x: order[x.label]), found


def table(found: Sequence[Match], problems: int) -> Section:
    """What was found, for the terminal."""
    rows = [
        [
            x.cell, f"{x.size:g}", f"{x.mean_bytes / 1e6:.3f}", f"{x.target / 1e6:.3f}", f"{x.off:+.1%}",
            str(len(x.tries)),
        ]
        for x in found
    ]  # fmt: skip
    far = [x.cell for x in found if not x.within]
    why = "not within the tolerance, since pages are whole, all tokens are kept or pilots are noisy"
    note = f"{why}: {', '.join(far)}" if far else ""
    title = f"Budgets of equal mean bytes, on {problems} pilot problems"
    return Section(title, ("cell", "budget", "mean MB", "target MB", "off", "tries"), rows, note)
