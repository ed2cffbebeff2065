"""What a study will take before it is run: chains, tokens, bytes of cache, hours. No weights are loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reasonalloc import _core
from reasonalloc.config import Config
from reasonalloc.files import Json
from reasonalloc.lab.evaluate.accuracy import Batch
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.evaluate.records import Record, read, there
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.models import shape
from reasonalloc.lab.table import Section
from reasonalloc.policy.wave import WaveProfile

ASSUMED_SPEED = 165.0  # tokens a second of all rows together, where nothing better is known
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PROMPT = 200  # tokens, about


@dataclass(frozen=True)
class Row:
    """One cell. chains: still to make; made: those that are there. tokens: at most, of all chains to make.
    row_bytes: of the cache of one row at its end, about; None where the model's shape is not known. hours: at most."""

    cell: str
    chains: int
    made: int
    tokens: int
    row_bytes: int | None
    hours: float


@dataclass(frozen=True)
class Estimate:
    """speed: tokens a second of all rows, and where that is from. batch: rows that decode together."""

    task: str
    rows: list[Row]
    speed: float
    speed_from: str
    batch: int
    longest: int
    unknown: str = ""

    @property
    def chains(self) -> int:
        return sum(x.chains for x in self.rows)

    @property
    def tokens(self) -> int:
        return sum(x.tokens for x in self.rows)

    @property
    def hours(self) -> float:
        return sum(x.hours for x in self.rows)

    @property
    def peak_bytes(self) -> int | None:
        """Of the largest batch's cache."""
        sizes = [x.row_bytes * min(self.batch, x.chains) for x in self.rows if x.row_bytes is not None and x.chains]
        return max(sizes, default=None)

    @property
    def largest(self) -> int:
        """Rows of the largest batch."""
        return min(self.batch, max((x.chains for x in self.rows), default=0))

    def as_json(self) -> Json:
        totals = {"chains": self.chains, "tokens": self.tokens, "hours": self.hours, "peak_bytes": self.peak_bytes}
        return {"schema": 1, **asdict(self), **totals}

    def section(self) -> Section:
        total = Row("all", self.chains, sum(x.made for x in self.rows), self.tokens, None, self.hours)
        rows = [
            [x.cell, f"{x.chains:,}", f"{x.made:,}", f"{x.tokens:,}", _mib(x.row_bytes), f"{x.hours:,.1f}"]
            for x in [*self.rows, total]
        ]
        peak = _mib(self.peak_bytes)
        notes = [
            f"Chains end at {self.longest:,} tokens at the latest, so tokens and hours are the most that it takes.",
            f"Hours are of one process at {self.speed:,.0f} tokens a second ({self.speed_from}).",
            f"The cache of {self.largest} rows that decode together takes about {peak} MiB at most."
            if peak
            else self.unknown,
        ]
        heads = ["cell", "chains to make", "made", "tokens", "MiB a row", "hours"]
        return Section(f"{self.task}: {len(self.rows)} cells", heads, rows, " ".join(x for x in notes if x))


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.1f}"


def estimate(study: Study, cells: Sequence[Cell], speed: float | None = None) -> Estimate:
    """Of what a study has still to make. speed: tokens a second; None: as in the folder's own chains, else assumed.

    Nothing is written, and no weights are loaded. The model's config is read, from the Hub where it has to be.
    """
    records = [x for folder in {study.records.folder, study.folder} for x in _records(folder)]  # a shard's are two
    done = {x.key for x in records}
    whole = _counted(study.batches(cells, ()))
    left = _counted(study.batches(cells, done))
    source, seconds = "assumed; --speed says otherwise", sum(x.seconds for x in records)
    if speed is not None:
        source = "as given"
    elif seconds:
        speed, source = sum(x.tokens for x in records) / seconds, "of the chains in the folder"
    speed = speed or ASSUMED_SPEED
    longest = study.sampling.max_new_tokens
    model_shape, unknown = _shape(study)
    rows = []
    for cell in cells:
        jobs, made = left[cell.name], whole[cell.name] - left[cell.name]
        size = (
            None if model_shape is None else row_bytes(cell.config, model_shape, _PROMPT + longest, study.source.dtype)
        )
        rows.append(Row(cell.name, jobs, made, jobs * longest, size, jobs * longest / speed / 3600))
    return Estimate(study.task, rows, speed, source, study.batch_size, longest, unknown)


def _counted(batches: Iterable[Batch]) -> Counter[str]:
    """Chains by cell."""
    found: Counter[str] = Counter()
    for batch in batches:
        found[batch.cell.name] += len(batch.jobs)
    return found


def row_bytes(config: Config, shape: dict[str, Any], tokens: int, dtype: str) -> int:
    """Of a row's cache when it has seen `tokens`: its budget and what comes between two cuts, in whole pages. config:
    with a budget or ratio, as all cells of a study."""
    page = _core.PAGE_TOKENS
    slots = tokens
    if not config.resolve().unlimited:
        budget = config.budget if config.budget is not None else math.ceil((config.ratio or 1.0) * tokens)
        slots = min(tokens, budget + config.policy().schedule.interval)
    pages = -(-slots // page)
    return int(pages * page * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * 2 * _BYTES[dtype])


def _shape(study: Study) -> tuple[dict[str, Any] | None, str]:
    try:
        found = shape(study.source.model)
        return {**found, **{key: int(found[key]) for key in ("layers", "kv_heads", "head_dim")}}, ""
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        return None, f"Bytes are not known: {' '.join(str(error).split())}"


def _records(folder: Path) -> list[Record]:
    path = there(folder)
    return [] if path is None else list(read(path, torn=True))


class UnmeasuredWaves:
    """Stands in for `Waves` where only the cells are wanted: a wave of two layers, nothing measured."""

    def __init__(self, task: str) -> None:
        self.task = task

    def get(self, count: int = 4, rho: float = 0.93, task: str | None = None) -> WaveProfile:
        return WaveProfile((1.0, 100.0), (0, 1), {"task": task or self.task, "count": count}, rho)
