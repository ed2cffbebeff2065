"""A study as a YAML file: what is compared, on what, and which comparisons are made, written down before its chains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from reasonalloc.config import Config
from reasonalloc.fields import build
from reasonalloc.files import Json
from reasonalloc.lab.evaluate.ablations import ABLATIONS, Ablation, Around, Measured, cells_of
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.evaluate.statistics import Paired, adjusted, paired, picks
from reasonalloc.lab.evaluate.study import check_name
from reasonalloc.lab.evaluate.summary import Row, Summary
from reasonalloc.lab.models import DTYPES
from reasonalloc.lab.table import Section
from reasonalloc.meant import meant
from reasonalloc.methods import takes_size
from reasonalloc.policy.wave import WaveProfile

INSTALL = "pip install pyyaml"
_SIZES = ("budget", "ratio")
_NO_SIZE: list[None] = [None]
_Place = tuple[str, int | None]  # a cell's label, and the budget that it is made at if it has none of its own
_FIELDS = tuple(x.name for x in fields(Config) if x.init)
_SHIPPED = Path(str(files("reasonalloc"))) / "data" / "studies"


def shipped() -> list[str]:
    """Names of the studies that come with this package: the paper's tables and the ablations."""
    return sorted(x.stem for x in _SHIPPED.glob("*.yaml"))


def text_of(name: str) -> str:
    """A shipped study, to read or to change."""
    if name not in shipped():
        raise ValueError(f"there is no study {name!r}; there are {', '.join(shipped())}")
    return (_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class StudyFile:
    """What a file says; every field but `name` and `cells` or `ablations` has the default of `reasonalloc evaluate
    accuracy`.

    name: of the results. question: in a line. cells: by label, fields of `Config` over those of `config`; a label has
    no blanks. budgets: every cell that says no size itself is made at each of these ("LABEL 384"). wave: the file of
    the layer wave, beside this one; without it a cell that needs one gets that of the task. comparisons: pairs of
    labels, the first less the second at each budget; Holm's p is over all of them, also where a `part` makes fewer.
    equal_bytes: a label; the other cells get, for each of `budgets`, the budget at which they take as many bytes as
    that one, on the average over time, found on `pilot` problems to within `tolerance`, a share. ablations: names of
    `reasonalloc ablate`, around the one budget and `config`; each makes a table of its own. wave_tokens: of a chain
    that the task's wave is measured on, at most. settings, problems, seed and what follows: as the options of that
    command.
    """

    name: str
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    ablations: list[str] = field(default_factory=list)
    question: str = ""
    comparisons: list[tuple[str, str]] = field(default_factory=list)
    equal_bytes: str | None = None
    pilot: int = 2
    tolerance: float = 0.02
    budgets: list[int] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    wave: str | None = None
    model: str | None = None
    dtype: str = "float32"
    task: str = "ledger"
    settings: list[str] | None = None
    problems: int | None = None
    seed: int = 0
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 4096
    batch_size: int = 16
    wave_tokens: int = 512
    digest: str = field(default="", init=False)
    family: int = field(default=0, init=False)  # comparisons of the whole file
    partial: bool = field(default=False, init=False)  # made by `part`, with fewer cells or budgets

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.name in self.ablations:
            raise ValueError(
                f"the name is that of one of its ablations, whose results would take its place: {self.name!r}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not self.cells and not self.ablations:
            raise ValueError("it compares nothing: it has neither cells nor ablations")
        for name in self.ablations:
            if name not in ABLATIONS:
                raise ValueError(f"ablations are among {', '.join(ABLATIONS)}, got {name!r}")
        if self.ablations and (len(self.budgets) != 1 or self.wave is not None):
            raise ValueError("ablations are made around one of `budgets` and measure their waves: no `wave`")
        for label in self.cells:
            if len(label.split()) != 1 or not label.isprintable():  # chains are kept by it, in UTF-8
                raise ValueError(f"a cell's label is one word, got {label!r}")
        for pair in self.comparisons:
            for label in pair:
                if label not in self.cells:
                    raise ValueError(f"comparisons name cells, got {label!r}; there are {', '.join(self.cells)}")
            if pair[0] == pair[1]:
                raise ValueError(f"comparisons are of two cells, got {pair[0]!r} and itself")
        _check_once("budgets", self.budgets)
        _check_once("ablations", self.ablations)
        _check_once("comparisons", [" and ".join(sorted(pair)) for pair in self.comparisons])
        if self.equal_bytes is not None:
            self._check_equal_bytes()
        for what in ("samples", "max_new_tokens", "batch_size", "problems", "wave_tokens", "pilot"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ValueError(f"{what} must be a positive whole number, got {value}")
        if self.seed < 0 or any(x < 1 for x in self.budgets):
            raise ValueError(f"the seed must not be negative and budgets positive, got {self.seed} and {self.budgets}")
        object.__setattr__(self, "family", len(self._pairs()))

    def _check_equal_bytes(self) -> None:
        label = self.equal_bytes
        if label not in self.cells:
            raise ValueError(f"equal_bytes names a cell, got {label!r}; there are {', '.join(self.cells)}")
        if not self._is_at_budgets({**self.config, **self.cells[label]}):
            raise ValueError(f"equal_bytes names a cell that is made at each of `budgets`, {label!r} is not")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is a share above 0 and below 1, got {self.tolerance}")

    @classmethod
    def load(cls, path: str | Path) -> StudyFile:
        """path: of a file, or a name of `shipped`. ValueError, naming the file and the field, for one that is none."""
        try:
            import yaml
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"study files need PyYAML: {INSTALL}") from error
        source = _SHIPPED / f"{path}.yaml"
        source = source if str(path) in shipped() and not Path(path).exists() else Path(path)
        try:
            raw = source.read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        try:
            data = yaml.load(raw, _loader(yaml))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        except RecursionError:
            raise ValueError(f"{path} is not a study: nested too deep") from None
        try:
            found = build(cls, data, "it")
        except ValueError as error:
            raise ValueError(f"{path} is not a study: {error}") from error
        if found.wave is not None:
            object.__setattr__(found, "wave", str(Path(path).parent / found.wave))
        object.__setattr__(found, "digest", hashlib.sha256(raw).hexdigest())
        return found

    def part(
        self, budgets: Sequence[int] | None = None, cells: Sequence[str] | None = None, batch_size: int | None = None
    ) -> StudyFile:
        """The same with some of its budgets and cells only, and with the comparisons whose cells are left, adjusted as
        among all of the file; batch_size: another number of chains that decode together. ValueError for what the file
        does not have."""
        for given, allowed, what in ((budgets, self.budgets, "budgets"), (cells, self.cells, "cells")):
            for x in given or ():
                if x not in allowed:
                    raise ValueError(f"the {what} of {self.name} are {', '.join(map(str, allowed)) or 'none'}, got {x}")
        left = self.cells if cells is None else {x: self.cells[x] for x in self.cells if x in cells}
        if self.equal_bytes is not None and self.equal_bytes not in left:
            raise ValueError(f"the other cells of {self.name} take as many bytes as {self.equal_bytes}: name that too")
        found = replace(
            self,
            budgets=self.budgets if budgets is None else [x for x in self.budgets if x in budgets],
            cells=left,
            ablations=self.ablations if cells is None else [],
            comparisons=[pair for pair in self.comparisons if set(pair) <= set(left)],
            batch_size=batch_size or self.batch_size,
        )
        fewer = (found.budgets, found.cells) != (self.budgets, self.cells)
        for name, value in (("digest", self.digest), ("family", self.family), ("partial", self.partial or fewer)):
            object.__setattr__(found, name, value)
        return found

    def ablated(self, waves: Measured) -> list[tuple[Ablation, list[Cell]]]:
        """Each of its ablations, with its cells."""
        around = [Around(waves, budget, self.config) for budget in self.budgets]
        return [(ABLATIONS[name], cells_of(ABLATIONS[name], around[0])) for name in self.ablations]

    def made(self) -> list[Cell]:
        """Its cells; ValueError, naming the label, for settings that a `Config` refuses."""
        wave = None if self.wave is None else WaveProfile.load(self.wave)
        found = []
        for label, changes in self.cells.items():
            settings = {**self.config, **changes}
            if settings.get("max_bytes") is not None:
                raise ValueError(
                    f"the cell {label!r} has max_bytes, which the chains of a batch share, so that its answers would"
                    f" depend on how many they are: give it one of {', '.join(_SIZES)}, or the file equal_bytes"
                )
            if not self.budgets and self._needs_size(settings):
                raise ValueError(
                    f"the cell {label!r} has no size: give the file `budgets`, or the cell one of {', '.join(_SIZES)}"
                )
            for budget in self.budgets if self._is_at_budgets(settings) else _NO_SIZE:
                size = {} if budget is None else {"budget": budget}
                found.append(Cell(f"{label} {budget or ''}".strip(), _config(label, {**settings, **size}, wave)))
        return found

    def _is_at_budgets(self, settings: Mapping[str, Any]) -> bool:
        """Whether a cell of these settings is made at each of `budgets`."""
        return bool(self.budgets) and self._needs_size(settings)

    @staticmethod
    def _needs_size(settings: Mapping[str, Any]) -> bool:
        """Whether a cell of these settings takes a size and says none."""
        return all(settings.get(x) is None for x in _SIZES) and _takes_size(settings)

    def compared(self, summary: Summary) -> list[Comparison]:
        """The comparisons of the file, each at every budget at which both cells are there."""
        rows = {row.cell: row for row in summary.rows}
        found = [(self._row(rows, *one), self._row(rows, *other)) for one, other in self._pairs()]
        pairs = [(one, other) for one, other in found if one is not None and other is not None]
        tests = adjusted([_paired(one, other, self.seed) for one, other in pairs], self.family)
        return [Comparison(one.cell, test) for (one, _), test in zip(pairs, tests, strict=True)]

    def _pairs(self) -> list[tuple[_Place, _Place]]:
        """What is compared, each pair once: two cells without a budget are one pair, however many budgets there are."""
        sizes = self.budgets or _NO_SIZE
        every = [(self._place(x, size), self._place(y, size)) for x, y in self.comparisons for size in sizes]
        return list(dict.fromkeys(every))

    def _place(self, label: str, size: int | None) -> _Place:
        return label, size if self._is_at_budgets({**self.config, **self.cells[label]}) else None

    def _row(self, rows: Mapping[str, Row], label: str, size: int | None) -> Row | None:
        names = [label] if size is None else [f"{label} {size}", f"{label} {size}@{self.equal_bytes}"]
        return next((rows[x] for x in names if x in rows), None)


@dataclass(frozen=True)
class Comparison:
    """cell: the first of the pair; the other is `pair.against`."""

    cell: str
    pair: Paired


def _check_once(what: str, values: Sequence[object]) -> None:
    twice = next((x for i, x in enumerate(values) if x in values[:i]), None)
    if twice is not None:
        raise ValueError(f"{what} are named once each, got {twice} twice")


def _loader(yaml: Any) -> Any:
    """PyYAML's safe loader, which takes the last of two keys of one name in silence, with an error for them."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            lines: dict[str, int] = {}
            for key in [x for x, _ in node.value if isinstance(x, yaml.ScalarNode)]:
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise yaml.YAMLError(f"{key.value!r} is there twice, in lines {lines[key.value]} and {line}")
                lines[key.value] = line
            return super().construct_mapping(node, deep)

    return Loader


def _config(label: str, settings: Mapping[str, Any], wave: WaveProfile | None) -> Config:
    for key in settings:
        if key not in _FIELDS:
            hint = meant(str(key), _FIELDS)
            raise ValueError(f"the cell {label!r} is none: there is no {key!r}{hint}; there are {', '.join(_FIELDS)}")
    try:
        config = Config(**settings)
        if wave is not None and config.profile is None and config.resolve().needs_wave:
            config = Config(**settings, profile=wave)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the cell {label!r} is none: {error}") from error
    return config


def _takes_size(settings: Mapping[str, Any]) -> bool:
    try:
        return takes_size(settings.get("method", Config.method), settings)
    except ValueError:
        return True  # `_config` says what is wrong, and in which cell


def _paired(one: Row, other: Row, seed: int) -> Paired:
    both = [x for x in one.scores if x in other.scores]
    ours, theirs = [one.scores[x] for x in both], [other.scores[x] for x in both]
    return paired(other.cell, ours, theirs, picks(len(both), seed))


def section(comparisons: Sequence[Comparison]) -> Section:
    """Table of the comparisons."""
    rows = [
        [x.cell, x.pair.against, x.pair.difference.text("+.1%"), f"{x.pair.wins} / {x.pair.losses}", f"{x.pair.p:.2g}",
         f"{x.pair.holm:.2g}"]
        for x in comparisons
    ]  # fmt: skip
    heads = ["cell", "less", "difference", "better / worse", "p", "Holm"]
    family = max((x.pair.family for x in comparisons), default=0)
    over = f"these {len(comparisons)}" if family == len(comparisons) else f"all {family} that are planned"
    note = f"Paired by problem; p of the permutation test on problem means, Holm's over {over}."
    return Section("Comparisons of the plan", heads, rows, note, words=2)


def as_json(comparisons: Sequence[Comparison]) -> list[Json]:
    return [{"cell": x.cell, **asdict(x.pair)} for x in comparisons]
