"""Fidelity: how far a compressed cache moves a model's next-token distribution from the full cache's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table

from reasonalloc.config import Config, parse_bytes
from reasonalloc.fields import load
from reasonalloc.files import Json, replace_text
from reasonalloc.hf.attention import using
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.decode import DecodeBatch
from reasonalloc.lab.evaluate.cells import Cell, cell_name, once
from reasonalloc.lab.evaluate.forcing import full_log_probs
from reasonalloc.lab.evaluate.statistics import Measure, bootstrap, holm, permutation_test, picks
from reasonalloc.lab.evaluate.texts import Text
from reasonalloc.lab.table import Section
from reasonalloc.protocols import Model

SCHEMA = 1

# What is measured of each text, each a mean over its tokens. bytes and slots: of the compressed cache.
_Metric = Literal["nll", "excess_nll", "kl", "agreement", "mean_bytes", "peak_bytes", "slots_ratio"]
METRICS: tuple[_Metric, ...] = get_args(_Metric)


class _Figures(TypedDict):
    id: str
    tokens: int
    nll: float
    excess_nll: float
    kl: float
    agreement: float
    mean_bytes: float
    peak_bytes: float
    slots_ratio: float


@dataclass(frozen=True)
class Point:
    """One method at one budget (slots of a KV head), ratio or max_bytes; all None for the full cache.

    nll: negative log-likelihood of the reference text, nats a token; excess_nll: the same less the full cache's.
    kl: KL(full || compressed), nats a token. agreement: share of tokens where both rank the same token first.
    mean_bytes, peak_bytes: of the cache over a text. slots_ratio: slots kept / a full cache's, at the text's end.
    problems: the same figures of each text, with its `id` and `tokens`. variant: what tells it from the plain method.
    """

    method: str
    budget: int | None
    ratio: float | None
    nll: Measure
    excess_nll: Measure
    kl: Measure
    agreement: Measure
    mean_bytes: Measure
    peak_bytes: Measure
    slots_ratio: Measure
    problems: list[Json]
    max_bytes: int | None = None
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} {self.variant}".strip()

    @property
    def setting(self) -> str:
        return _setting(self.budget, self.ratio, self.max_bytes)


def _setting(budget: int | None, ratio: float | None, max_bytes: int | None) -> str:
    if max_bytes is not None:
        return f"{max_bytes / 2**20:g} MiB"
    if budget is None and ratio is None:
        return "all"
    return str(budget) if budget is not None else f"{ratio:g}"


@dataclass(frozen=True)
class Difference:
    """KL of a point less that of another method at the same size, paired by text: mean and its bootstrap over texts.

    p: two-sided permutation test on the texts' differences; holm: adjusted for the `family` of all that are compared.
    """

    name: str
    against: str
    setting: str
    kl: Measure
    p: float
    holm: float
    family: int


@dataclass(frozen=True)
class Fidelity:
    """All points of one evaluation, with where they come from."""

    points: list[Point]
    full_nll: Measure
    provenance: Json = field(default_factory=dict)
    schema: int = SCHEMA
    differences: list[Difference] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Writes the result as JSON, whole or not at all."""
        replace_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Fidelity:
        """Reads a saved result; ValueError if the file is none."""
        return load(cls, path, "fidelity result", SCHEMA)

    def table(self) -> Table:
        """The result as a rich table."""
        heads = ("method", "budget", "NLL", "excess NLL", "KL", "top-1 agreement", "mean bytes", "peak bytes", "slots")
        rows = [
            [
                p.name, p.setting, f"{p.nll.mean:.3f}", p.excess_nll.text(".3f"), p.kl.text(".3f"),
                p.agreement.text(".1%"), f"{p.mean_bytes.mean / 2**20:.2f} MiB", f"{p.peak_bytes.mean / 2**20:.2f} MiB",
                f"{p.slots_ratio.mean:.1%}",
            ]
            for p in self.points
        ]  # fmt: skip
        title = "Fidelity under teacher forcing (mean over problems, 95 % bootstrap interval)"
        return Section(title, heads, rows, f"full cache: {self.full_nll.text('.3f')} nats a token").rich()

    def differences_table(self) -> Table:
        """The differences as a rich table."""
        rows = [
            [x.name, x.against, x.setting, x.kl.text("+.4f"), f"{x.p:.2g}", f"{x.holm:.2g}"] for x in self.differences
        ]
        note = f"Permutation test on the texts, Holm's p over these {len(rows)}. Below 0: nearer to the full cache."
        heads = ("method", "less", "budget", "KL, nats a token", "p", "Holm")
        return Section("KL to the full cache, paired by text", heads, rows, note).rich()


def evaluate_fidelity(
    model: Model,
    texts: Iterable[Text],
    configs: Sequence[Config | Cell],
    *,
    seed: int = 0,
    against: str | None = None,
    batch_size: int = 1,
    provenance: Json | None = None,
    progress: Callable[[int], None] | None = None,
) -> Fidelity:
    """Measures each config on each text by teacher forcing: the prompt as prefill, then one token a step.

    configs: one for each point, each with a budget, a ratio or max_bytes, or method "full"; a cell's name tells it from
    others of its method; what is there twice is measured once. against: method with which every other point of the same
    size is compared. batch_size: texts that go through the model together; the size in max_bytes is that of so many,
    of which fewer have their share. seed: of the bootstrap over texts. progress: called with the number of tokens since
    the last call. Raises ValueError for no configs or texts, and as `check_against`.
    """
    cells = once(x if isinstance(x, Cell) else Cell(cell_name(x), x) for x in configs)
    if not cells:
        raise ValueError("give at least one config to evaluate")
    if against is not None:
        check_against(cells, against)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    rows: list[list[_Figures]] = [[] for _ in cells]
    full: list[float] = []
    with using(model):
        for some in _batches(texts, batch_size):
            references = [full_log_probs(model, x.prompt, x.solution) for x in some]
            nlls = [-float(_chosen(x, y.solution).mean()) for x, y in zip(references, some, strict=True)]
            full += nlls
            for cell, figures in zip(cells, rows, strict=True):
                config = _for_rows(cell.config, len(some), batch_size)
                figures += _measure(model, config, some, references, nlls, progress)
    if not full:
        raise ValueError("there is no text to evaluate on")
    chosen = picks(len(full), seed)
    points = [
        Point(
            cell.config.method, cell.config.budget, cell.config.ratio, problems=list(figures),
            max_bytes=_bytes(cell.config),
            variant=_variant(cell),
            **{metric: bootstrap([x[metric] for x in figures], chosen) for metric in METRICS},
        )
        for cell, figures in zip(cells, rows, strict=True)
    ]  # fmt: skip
    kls = [[x["kl"] for x in figures] for figures in rows]
    differences = [] if against is None else _differences(points, kls, against, chosen)
    return Fidelity(points, bootstrap(full, chosen), provenance or {}, differences=differences)


def check_against(cells: Sequence[Cell], against: str) -> None:
    """ValueError for a method that is not among the cells, or at none of the sizes that others have."""
    methods = list(dict.fromkeys(x.config.method for x in cells))
    if against not in methods:
        raise ValueError(f"against must be one of the methods {', '.join(methods)}: {against!r}")
    if against == "full":
        raise ValueError("against: every figure is a distance from the full cache already, give another method")
    points = [
        (f"{x.config.method} {_variant(x)}".strip(), _setting(x.config.budget, x.config.ratio, _bytes(x.config)))
        for x in cells
        if x.config.method != "full"
    ]
    if not any(name != against and (against, setting) in points for name, setting in points):
        raise ValueError(f"against: nothing has a size that {against} has too, to be compared with it")


def _variant(cell: Cell) -> str:
    return cell.name.removeprefix(cell_name(cell.config)).strip()


def _bytes(config: Config) -> int | None:
    return None if config.max_bytes is None else parse_bytes(config.max_bytes)


def _for_rows(config: Config, rows: int, of: int) -> Config:
    """With the share of max_bytes that `rows` rows have of `of`: a row keeps as much in a smaller batch."""
    if config.max_bytes is None or rows == of:
        return config
    return replace(config, max_bytes=parse_bytes(config.max_bytes) // of * rows)


def _batches(texts: Iterable[Text], size: int) -> Iterator[list[Text]]:
    some: list[Text] = []
    for text in texts:
        some.append(text)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _differences(
    points: Sequence[Point], kls: Sequence[Sequence[float]], against: str, chosen: npt.NDArray[np.int64]
) -> list[Difference]:
    """Of every point but full caches and the other itself, a plain cell. kls: of each point's texts."""
    others = {x.setting: divergences for x, divergences in zip(points, kls, strict=True) if x.name == against}
    compared = [
        (x, [a - b for a, b in zip(divergences, others[x.setting], strict=True)])
        for x, divergences in zip(points, kls, strict=True)
        if x.method != "full" and x.name != against and x.setting in others
    ]
    ps = [permutation_test(x) for _, x in compared]
    return [
        Difference(x.name, against, x.setting, bootstrap(each, chosen), p, adjusted, len(compared))
        for (x, each), p, adjusted in zip(compared, ps, holm(ps), strict=True)
    ]


def _chosen(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(-1, tokens.to(log_probs.device)[:, None])[:, 0]


@dataclass
class _Sums:
    """Of the steps of one text so far."""

    text: Text
    reference: torch.Tensor
    full_nll: float
    nll: float = 0.0
    kl: float = 0.0
    agreement: int = 0
    bytes: float = 0.0
    peak: int = 0
    slots: float = 0.0
    step: int = 0

    def add(self, log_probs: torch.Tensor, size: int) -> None:
        """own: [V] log-probabilities of the next token; size: bytes of the row's pages."""
        full = self.reference[self.step]
        self.nll -= float(log_probs[self.text.solution[self.step]])
        gap = torch.where(full > float("-inf"), full.exp() * (full - log_probs), 0.0)
        self.kl += float(gap.sum(dtype=torch.float64))
        self.agreement += int(log_probs.argmax() == full.argmax())
        self.bytes += size
        self.peak = max(self.peak, size)
        self.step += 1

    @property
    def done(self) -> bool:
        return self.step == len(self.text.solution)

    def figures(self) -> _Figures:
        tokens = self.step
        return {
            "id": self.text.id,
            "tokens": tokens,
            "nll": self.nll / tokens,
            "excess_nll": self.nll / tokens - self.full_nll,
            "kl": max(self.kl / tokens, 0.0),  # rounding may leave it a little below
            "agreement": self.agreement / tokens,
            "mean_bytes": self.bytes / tokens,
            "peak_bytes": float(self.peak),
            "slots_ratio": self.slots / (len(self.text.prompt) + tokens - 1),
        }


def _measure(
    model: Model,
    config: Config,
    texts: Sequence[Text],
    references: Sequence[torch.Tensor],
    full_nlls: Sequence[float],
    progress: Callable[[int], None] | None,
) -> list[_Figures]:
    """Figures of each text; those of a batch go through the model side by side, each until its end."""
    cache = ReasonAllocCache(model, config)
    batch = DecodeBatch(model, cache, [x.prompt for x in texts])
    every = [_Sums(*x) for x in zip(texts, references, full_nlls, strict=True)]
    rows = list(every)
    while rows:
        logs = torch.log_softmax(batch.forward().float(), dim=-1)
        for row, log_probs, size in zip(rows, logs, cache.page_bytes_by_row(), strict=True):
            row.add(log_probs, int(size))
        if progress:
            progress(len(rows))
        on = [i for i, row in enumerate(rows) if not row.done]
        if len(on) < len(rows):
            for row, slots in zip(rows, cache.slots().mean((1, 2)), strict=True):
                row.slots = float(slots)
            rows = [rows[i] for i in on]
            batch.keep(on)
        batch.append(torch.tensor([int(row.text.solution[row.step - 1]) for row in rows], dtype=torch.long))
    return [row.figures() for row in every]
