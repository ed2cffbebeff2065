"""A folder of generations and what is read from it: the machinery that `evaluate accuracy`, `ablate` and the paper's
tables share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from reasonalloc.files import replace_text
from reasonalloc.hf.attention import using
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.decode import Sampling, not_applied, warn_of
from reasonalloc.hf.profile import profile
from reasonalloc.lab import models
from reasonalloc.lab.evaluate import expected, statistics
from reasonalloc.lab.evaluate.accuracy import Batch, plan, run_batch
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.evaluate.grading import grade
from reasonalloc.lab.evaluate.records import Record, Records
from reasonalloc.lab.evaluate.shard import Shard
from reasonalloc.lab.evaluate.stock import Start, start
from reasonalloc.lab.evaluate.summary import Summary, summarise
from reasonalloc.lab.evaluate.waves import Waves
from reasonalloc.lab.evaluate.workers import Source, first_prompts, profile_on_ray, run_on_ray
from reasonalloc.lab.tasks import Item
from reasonalloc.policy.wave import WaveProfile
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.provenance import provenance


@dataclass(frozen=True)
class RaySettings:
    """Where batches run if not here. address: of a cluster, None for one on this machine."""

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0


@dataclass
class Study:
    """Problems of one task, one model, one way of sampling; cells come and go."""

    folder: Path
    source: Source
    task: str
    items: Sequence[Item]
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    batch_size: int = 16
    ray: RaySettings | None = None
    about: dict[str, Any] = field(default_factory=dict)  # what else a table's provenance says
    wave_tokens: int = 512  # of a chain that the task's wave is measured on, at most
    say: Callable[[str], None] = lambda _: None  # called with what takes its time: loading, the wave, the chains
    notes: list[str] = field(default_factory=list)  # what readers of its tables must know beside
    shard: Shard | None = None  # only this part of the chains; they lie in a folder of its own inside of `folder`

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.samples > 1 and not self.sampling.temperature:
            raise ValueError(f"{self.samples} samples need a temperature above 0: greedy ones are all the same")
        self.folder = Path(self.folder)
        self.records = Records(self.folder if self.shard is None else self.folder / self.shard.folder)

    @property
    def settings(self) -> dict[str, object]:
        """What all generations of the folder have in common."""
        asked = self.asked
        return {"model": asked["model"], "weights": models.fingerprint(str(asked["model"])), **asked}

    @property
    def asked(self) -> dict[str, object]:
        """`settings` without the fingerprint of the weights, for which their files are read."""
        about = {"model": self.source.model or models.EMBEDDED, "dtype": self.source.dtype, "task": self.task}
        return {**about, "samples": self.samples, **asdict(self.sampling)}

    @cached_property
    def model(self) -> tuple[Model, Tokenizer]:
        """(model, tokenizer), loaded when first asked for."""
        self.say("loading the model")
        model, tokenizer, _ = self.source.load()
        warn_of(not_applied(model, self.sampling))
        return model, tokenizer

    @cached_property
    def waves(self) -> Waves:
        settings = self.settings  # once: it reads from the weights' files
        about = {key: settings[key] for key in ("model", "weights", "dtype")}
        return Waves(self._profile, self.task, self.folder, about, self.wave_tokens)

    def _profile(self, prompts: Sequence[str], **how: Any) -> WaveProfile:
        if self.ray is not None:
            self.say("measuring the layer wave")
            return profile_on_ray(self.source, prompts, address=self.ray.address, gpus=self.ray.gpus, **how)
        pair = self.model
        self.say("measuring the layer wave")
        return profile(*pair, prompts, progress=False, **how)

    def with_wave(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells with the task's wave where their method needs one and none was given."""
        return [
            Cell(x.name, replace(x.config, profile=self.waves.get()))
            if x.config.resolve().needs_wave and x.config.profile is None
            else x
            for x in cells
        ]

    def batches(self, cells: Sequence[Cell], done: Collection[tuple[str, str, int]]) -> list[Batch]:
        """What is to be made. done: keys of chains that are there."""
        if self.shard is None:
            return plan(self.items, cells, self.samples, self.batch_size, done)
        return self.shard.of(plan(self.items, cells, self.samples, self.batch_size), done)

    def run(self, cells: Sequence[Cell], progress: Callable[[int, int], None] | None = None) -> None:
        """Makes what is missing; the folder is others' to write to afterwards. What the whole study's folder has is not
        missing in a shard. progress: (chains made, chains to make), at the start and after each chain.

        Raises ValueError, with nothing changed, if the folder's generations were made with other settings.
        """
        ready()
        settings = self.settings  # once: it reads from the weights' files
        self.records.open(settings)
        try:
            batches = self._missing(cells, settings)
            total = sum(len(x.jobs) for x in batches)
            starts: list[Start] = []
            if progress:
                progress(0, total)
            for i, record in enumerate(self._generate(batches, starts.append), 1):
                self.records.add(record)
                while starts:  # set before the first chain ends
                    here = provenance()
                    self.records.add_run({"command": here["command"], "created": here["created"], **starts.pop(0)})
                if progress:
                    progress(i, total)
        finally:
            self.records.close()

    def _missing(self, cells: Sequence[Cell], settings: dict[str, object]) -> list[Batch]:
        whole = Records(self.folder)
        if self.shard is not None:
            whole.load(settings)
        configs, asked = {x.name: x.hash for x in cells}, {x.id: x.hash for x in self.items}
        for each in (self.records, whole):
            each.check(configs, asked)
        return self.batches(cells, {*self.records.by_key, *whole.by_key})

    def mean_bytes(self, cell: Cell, items: Sequence[Item]) -> float:
        """Of chains of other problems, which are not kept: the mean over steps, then over the chains."""
        batches = plan(items, [cell], 1, self.batch_size)
        return fmean(x.mean_bytes for x in self._generate(batches))

    def regrade(self) -> None:
        """Grades the chains of these problems again, from their texts; the folder is others' to write to afterwards."""
        by_id = {x.id: x for x in self.items}

        def again(record: Record) -> Record:
            item = by_id.get(record.item)
            if item is None or item.hash != record.asked:
                return record
            return replace(record, **vars(grade(record.text, item.answers, item.asked)))

        self.records.open(self.settings)
        try:
            self.records.change(again)
        finally:
            self.records.close()

    def _generate(self, batches: Sequence[Batch], on_start: Callable[[Start], None] | None = None) -> Iterator[Record]:
        """on_start: called with the `stock.start` of each model before any record is made."""
        if not batches:
            return
        if self.ray is not None:
            self.say(self.task)
            yield from run_on_ray(
                self.source, batches, self.sampling, address=self.ray.address, workers=self.ray.workers,
                gpus=self.ray.gpus, on_start=on_start,
            )  # fmt: skip
            return
        model, tokenizer = self.model
        self.say(self.task)
        if on_start is not None:
            on_start(start(model, tokenizer, first_prompts(batches)))
        with using(model):
            for cell in {x.cell.name: x.cell for x in batches}.values():
                ReasonAllocCache(model, cell.config)  # what does not fit the model is said before hours of work
        for batch in batches:
            yield from run_batch(*self.model, batch, self.sampling, graphs=self.source.graphs)

    def summary(self, cells: Sequence[Cell]) -> Summary:
        """Of the cells named, over this study's problems. A table may be made from chains of other machines: they are
        under "runs" in its provenance, the last run's machine and versions also in place of this process's."""
        names = {x.id for x in self.items}
        chosen = [x for x in self.records.by_key.values() if x.item in names]
        scores = expected.scores(self.source.model, self.task, {x.group for x in self.items})
        runs = self.records.runs()
        settings = self.settings
        origin = {**provenance(str(settings["model"]), self.sampling.seed), **settings}
        origin |= self.about
        if runs:
            origin |= {"runs": runs} | {key: runs[-1][key] for key in ("machine", "versions")}
        faults = list(dict.fromkeys(text for run in runs for text in cast(list[str], run.get("differences", []))))
        faults += self.notes
        return summarise(
            chosen, [x.name for x in cells], expected=scores, faults=faults, seed=self.sampling.seed, provenance=origin
        )


def ready() -> None:
    """ModuleNotFoundError for a package that a table or a picture will need."""
    from reasonalloc.lab import plots

    statistics.available()
    plots.available()


_TAKEN = re.compile(r"settings|runs|equal-bytes|wave-.+-\d+-[\d.e-]+")  # JSON files of a folder beside its tables


def check_name(name: str) -> None:
    """ValueError for a name that cannot be that of a table's files."""
    if not name or Path(name).name != name or name == ".." or not name.isprintable():
        raise ValueError(f"a name of results is that of their files, without folders, got {name!r}")
    if len(name.encode()) > 200:  # "-part-comparisons.json" and the like follow, and 255 is the most
        raise ValueError(f"a name of results has at most 200 bytes, got {len(name.encode())}: {name[:40]!r}...")
    if _TAKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no name of results: {name}.json is another file of their folder")


def write(summary: Summary, stem: Path, question: str = "") -> None:
    """stem.json, stem.md and stem.png. question: of an ablation, whose rows are not budgets of methods."""
    from reasonalloc.lab import plots

    replace_text(f"{stem}.json", json.dumps(summary.as_json(), indent=1) + "\n")  # a stem may have dots
    replace_text(f"{stem}.md", summary.markdown())
    if question:
        plots.cells(summary, f"{stem}.png", question)
    else:
        plots.accuracy(summary, f"{stem}.png")
