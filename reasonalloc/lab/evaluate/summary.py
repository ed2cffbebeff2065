"""The table of an evaluation, from its records alone."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path

from rich.table import Table

from reasonalloc.fields import load
from reasonalloc.files import Json
from reasonalloc.lab.evaluate.records import Record
from reasonalloc.lab.evaluate.statistics import (
    Measure,
    Paired,
    adjusted,
    paired,
    picks,
    proportion_interval,
    proportion_mean,
)
from reasonalloc.lab.table import Section

SCHEMA = 2
FULL = "full"
FAR = 0.05  # from the score that a full cache is known to have
MOST_CUT_OFF = 0.05  # share of the full cache's chains that may meet the length limit without a warning
TITLE = (
    "Accuracy (pass@1, 95 % interval over problems; differences with their interval and the p of the permutation test"
    " on problem means, by Holm for all of a column)"
)


@dataclass(frozen=True)
class Row:
    """One cell. accuracy: pass@1, mean over problems of the score averaged over samples; a score is the share of a
    problem's answers that are right. tokens: of a chain. truncated: share of chains that met the limit. *_bytes: of a
    row's pages. tokens_per_s: of all rows together. groups: accuracy of each part of the task. scores: by problem.
    by_rule: accuracy by other rules for which boxes count (`grading.grade`). again: share of the answers that were
    boxed more than once."""

    cell: str
    method: str
    budget: int | None
    ratio: float | None
    problems: int
    samples: int
    accuracy: Measure
    tokens: float
    truncated: float
    mean_bytes: float
    peak_bytes: int
    tokens_per_s: float
    against: list[Paired]
    groups: dict[str, float]
    scores: dict[str, float]
    by_rule: dict[str, float] = field(default_factory=dict)
    again: float = 0.0

    @property
    def setting(self) -> str:
        return self.cell.removeprefix(self.method).strip() or "all"

    @property
    def size(self) -> str:
        """The setting, with the budget or ratio before it where that was found by the bytes that it takes."""
        amount = str(self.budget) if self.budget is not None else f"{self.ratio:g}x" if self.ratio is not None else ""
        return self.setting if not amount or self.setting.split()[0] == amount else f"{amount} ({self.setting})"


@dataclass(frozen=True, repr=False)
class Summary:
    """All rows, with what a reader must be warned of."""

    rows: list[Row]
    warnings: list[str] = field(default_factory=list)
    provenance: Json = field(default_factory=dict)
    schema: int = SCHEMA

    def as_json(self) -> Json:
        return asdict(self)

    @classmethod
    def load(cls, path: str | Path) -> Summary:
        """Reads what `study.write` left as JSON; ValueError if the file is none."""
        return load(cls, path, "summary of accuracies", SCHEMA)

    def table(self) -> Table:
        """For the terminal."""
        return self._section().rich()

    def html(self) -> str:
        """For a notebook."""
        notes = "".join(f"<p><b>Warning:</b> {escape(x)}</p>" for x in self.warnings)
        return notes + self._section().html()

    def __repr__(self) -> str:
        made = self.provenance
        return f"<Summary of {made.get('model', '')} on {made.get('task', '')}: {', '.join(x.cell for x in self.rows)}>"

    def markdown(self) -> str:
        return "\n".join([*(f"> **Warning:** {x}\n" for x in self.warnings), self._section().markdown_rows()])

    def _section(self) -> Section:
        heads = _columns(self.rows)
        note = "\n".join(f"warning: {x}" for x in self.warnings)
        return Section(TITLE, heads, [_texts(row, heads) for row in self.rows], note)


def _column(row: Row, pair: Paired) -> str:
    """The head of the column that a comparison stands in."""
    name = pair.against.split()[0]
    return f"less {'default' if name == row.method else name} (p)"


def _columns(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(_column(row, x) for row in rows for x in row.against)
    rules = [f"{x} box" for x in dict.fromkeys(rule for row in rows for rule in row.by_rule)]
    rules += ["boxed again"] if rules else []
    return ["method", "budget", "accuracy", "cut off", *names, *rules, "chain", "mean MB", "peak MB", "tokens/s"]


def _texts(row: Row, heads: Sequence[str]) -> list[str]:
    pairs = {_column(row, x): f"{x.difference.text('+.1%')} ({x.holm:.2g})" for x in row.against}
    rules = {f"{rule} box": f"{value:.1%}" for rule, value in row.by_rule.items()}
    columns = {
        "method": row.method,
        "budget": row.size,
        "accuracy": row.accuracy.text(".1%"),
        "chain": f"{row.tokens:,.0f}",
        "cut off": f"{row.truncated:.0%}",
        "mean MB": f"{row.mean_bytes / 1e6:.1f}",
        "peak MB": f"{row.peak_bytes / 1e6:.1f}",
        "tokens/s": f"{row.tokens_per_s:.0f}",
        "boxed again": f"{row.again:.0%}" if rules else "",
    }
    return [(columns | pairs | rules).get(name, "") for name in heads]


def summarise(
    records: Iterable[Record],
    order: Sequence[str],
    *,
    expected: Mapping[str, float] | None = None,
    faults: Sequence[str] = (),
    baselines: Sequence[str] = (FULL, "rkv"),
    seed: int = 0,
    provenance: Json | None = None,
) -> Summary:
    """Rows in the order of the cells named; cells without records are left out.

    expected: score that the full cache is known to have, by group ("" for the whole task). faults: of the set-up.
    baselines: methods that each row is compared with, at its own setting or, for one without a budget, alone. A row
    that varies something is also compared with its method as it is by default.
    """
    by_cell: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_cell[record.cell].append(record)
    scores = {cell: _scores(by_cell[cell]) for cell in order if by_cell[cell]}
    rows = _adjusted([_row(cell, by_cell[cell], scores, baselines, seed) for cell in scores])
    return Summary(rows, [*faults, *_warnings(rows, by_cell, expected)], provenance or {})


def _scores(records: Sequence[Record]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for x in sorted(records, key=lambda x: (x.item, x.sample)):
        found[x.item].append(x.score)
    return {item: statistics.fmean(values) for item, values in found.items()}


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """With Holm's p for each column of comparisons."""
    columns: dict[str, list[tuple[int, int]]] = defaultdict(list)  # places in `against`
    against = [list(row.against) for row in rows]
    for i, row in enumerate(rows):
        for k, pair in enumerate(row.against):
            columns[_column(row, pair)].append((i, k))
    for places in columns.values():
        pairs = adjusted([against[i][k] for i, k in places])
        for (i, k), pair in zip(places, pairs, strict=True):
            against[i][k] = pair
    return [replace(row, against=pairs) for row, pairs in zip(rows, against, strict=True)]


def _by_rule(records: Sequence[Record]) -> dict[str, float]:
    """Mean over problems of the score by each other rule that all chains were graded by."""
    rules = [rule for rule in records[0].by_rule if all(rule in x.by_rule for x in records)]
    found: dict[str, float] = {}
    for rule in rules:
        scores: dict[str, list[float]] = defaultdict(list)
        for x in records:
            scores[x.item].append(statistics.fmean(x.by_rule[rule]))
        found[rule] = statistics.fmean(statistics.fmean(values) for values in scores.values())
    return found


def _baseline(name: str, cell: str, scores: Mapping[str, dict[str, float]]) -> str | None:
    """The cell of a baseline that a cell is compared with: the one of its size ("rkv 256"), the one at equal bytes
    ("rkv 256@snapkv" for "snapkv 256", and the other way round), or the one without any."""
    sizes = [x for x in cell.split()[1:] if x[0].isdigit()]
    names = [" ".join([name, *sizes]), name]
    for size in sizes:
        amount, _, owner = size.partition("@")
        if owner == name:
            names.insert(1, f"{name} {amount}")
        elif not owner:
            names.insert(1, f"{name} {amount}@{cell.split()[0]}")
    return next((x for x in names if x in scores), None)


def _row(
    cell: str, records: list[Record], scores: Mapping[str, dict[str, float]], baselines: Sequence[str], seed: int
) -> Row:
    by_problem, first = scores[cell], records[0]
    method = cell.split()[0]
    against = []
    others = [_baseline(x, cell, scores) for x in baselines if x != method]
    others.append(_baseline(method, cell, scores))  # what a row varies
    for other in others:
        if other is None or other == cell:
            continue
        both = [x for x in by_problem if x in scores[other]]
        if both:
            ours, theirs = [by_problem[x] for x in both], [scores[other][x] for x in both]
            against.append(paired(other, ours, theirs, picks(len(both), seed)))
    groups: dict[str, list[float]] = defaultdict(list)
    for x in records:
        groups[x.group].append(x.score)
    seconds = sum(x.seconds for x in records)
    return Row(
        cell, method, first.budget, first.ratio, len(by_problem), len(records) // max(len(by_problem), 1),
        proportion_mean(list(by_problem.values()), picks(len(by_problem), seed)),
        statistics.fmean(x.tokens for x in records),
        statistics.fmean(x.finish == "length" for x in records),
        statistics.fmean(x.mean_bytes for x in records),
        max(x.peak_bytes for x in records),
        sum(x.tokens for x in records) / seconds if seconds else 0.0,
        against, {k: statistics.fmean(v) for k, v in groups.items()}, by_problem, _by_rule(records),
        sum(x.again for x in records) / sum(len(x.right) for x in records),
    )  # fmt: skip


def _warnings(
    rows: Sequence[Row], by_cell: Mapping[str, list[Record]], expected: Mapping[str, float] | None
) -> list[str]:
    """What a reader must know before a row is believed."""
    full = next((row for row in rows if row.cell == FULL), None)
    if full is None:
        return ["the full cache was not measured, so nothing says that the set-up is right (add the method full)"]
    return [*_cut_off(full, by_cell[FULL]), *_gate(by_cell[FULL], expected)]


def _cut_off(full: Row, records: Sequence[Record]) -> list[str]:
    """Chains that meet the length limit have no answer: figures then say much about the limit."""
    if full.truncated < MOST_CUT_OFF:
        return []
    longest = max(x.tokens for x in records if x.finish == "length")
    return [
        f"{full.truncated:.0%} of the full cache's own chains were cut off at {longest:,} tokens, so accuracies measure"
        " the length limit too: raise --max-new-tokens"
    ]


def _gate(records: Sequence[Record], expected: Mapping[str, float] | None) -> list[str]:
    """Figures of a set-up whose full cache does not score as it is known to are not to be trusted."""
    if expected is None:
        return ["no published or measured score of this model on this task is known to compare the full cache with"]
    found = []
    known = {x.item: expected.get(x.group, expected.get("")) for x in records}
    unknown = sorted({x.group for x in records if known[x.item] is None})
    if unknown:
        found.append(f"no known score to compare the full cache with on {', '.join(unknown)}")
    own = {item: score for item, score in _scores(records).items() if known[item] is not None}
    if not own:
        return found
    score, should = statistics.fmean(own.values()), statistics.fmean(known[x] or 0.0 for x in own)
    if abs(score - should) > FAR + 1e-9:  # five points are not too far
        low, high = proportion_interval(sum(own.values()), len(own))
        found.append(
            f"the full cache scores {score:.1%} [{low:.1%}, {high:.1%}] on {len(own)} problems, where the model is"
            f" known for {should:.1%}: check prompt, sampling and length limit before you believe a row"
        )
    return found
