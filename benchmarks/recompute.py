"""Every figure of a table of accuracies, computed again from the chains that were committed with it.

    python benchmarks/recompute.py benchmarks/results/ablations/parts.json
    python benchmarks/recompute.py                          # all tables that have their chains beside them

Imports nothing of reasonalloc: a chain's record says which of its answers are right by each rule, the rest is
arithmetic. The unit is the problem: its score is the mean over its samples of the share of answers that are right.
Intervals are of 10,000 bootstraps over problems, p of 100,000 random signs of the problems' differences, both with
seeds of their own, so that they differ from the table's in the third digit; Holm's p is held to be that of the table's
own p. A study's planned comparisons (NAME-comparisons.json) are computed like the table's. The exit status is 1 if a
figure is another one. Not computed: which box is right (the chains' texts are there), slots, tokens a second.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
CHAINS = ("generations.jsonl", "generations.jsonl.gz", "{stem}.jsonl.gz")  # beside a table; one packed may be older


def chains_of(table: Path) -> Path | None:
    every = (table.parent / name.format(stem=table.stem) for name in CHAINS)
    return next((x for x in every if x.is_file() and x.stat().st_size), None)


def interval(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.quantile(values[rng.integers(len(values), size=(10_000, len(values)))].mean(1), [0.025, 0.975])


def p_value(difference: np.ndarray, rng: np.random.Generator) -> float:
    signs = rng.integers(2, size=(100_000, len(difference)), dtype=np.int8) * 2 - 1
    return (1 + int((np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).sum())) / (1 + len(signs))


def holm(ps: list[float], family: int) -> list[float]:
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = adjusted[i] = max(least, min(1.0, (family - rank) * ps[i]))
    return adjusted


def check(table: Path, chains: Path) -> list[str]:
    """Prints the table and returns what is wrong with it."""
    rng, wrong = np.random.default_rng(1), []
    data = chains.read_bytes()
    data = gzip.decompress(data) if chains.suffix == ".gz" else data
    records = [json.loads(line) for line in data.split(b"\n") if line]
    print(f"\n{table.relative_to(RESULTS.parent) if RESULTS in table.parents else table}, {len(records)} chains")

    def near(what: str, ours: float, theirs: float, by: float) -> None:
        if not abs(ours - theirs) <= by:
            wrong.append(f"{table.name}: {what} is {theirs:.6g} in the table, {ours:.6g} by the chains")

    scores: dict[str, dict[str, float]] = {}
    found: dict[str, Any] = json.loads(table.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = found["rows"]
    for row in rows:
        own = [x for x in records if x["cell"] == row["cell"] and x["item"] in row["scores"]]
        each = {x: [np.mean(y["right"]) for y in own if y["item"] == x] for x in row["scores"]}
        mean = scores[row["cell"]] = {item: float(np.mean(x)) for item, x in each.items()}
        accuracy = np.array(list(mean.values()))
        low, high = interval(accuracy, rng)
        near(f"{row['cell']}, accuracy", accuracy.mean(), row["accuracy"]["mean"], 1e-9)
        if accuracy.min() < accuracy.max():  # else the table has Wilson's interval
            near(f"{row['cell']}, low end", low, row["accuracy"]["low"], 0.02)
            near(f"{row['cell']}, high end", high, row["accuracy"]["high"], 0.02)
        near(f"{row['cell']}, cut off", np.mean([x["finish"] == "length" for x in own]), row["truncated"], 1e-9)
        near(f"{row['cell']}, tokens", np.mean([x["tokens"] for x in own]), row["tokens"], 1e-6)
        near(f"{row['cell']}, mean bytes", np.mean([x["mean_bytes"] for x in own]), row["mean_bytes"], 1)
        near(f"{row['cell']}, peak bytes", max(x["peak_bytes"] for x in own), row["peak_bytes"], 0)
        for rule, theirs in row.get("by_rule", {}).items():
            each = {x: [np.mean(y["by_rule"][rule]) for y in own if y["item"] == x] for x in row["scores"]}
            near(f"{row['cell']}, by rule {rule}", np.mean([np.mean(x) for x in each.values()]), theirs, 1e-9)
        print(f"  {row['cell']:40s} {accuracy.mean():6.1%} [{low:.1%}, {high:.1%}]  cut off {row['truncated']:.0%}")

    def compare(told: list[tuple[str, dict[str, Any]]], family: int | None = None) -> None:
        """Differences that Holm's p is over. family: number of them that were planned, if only these were made."""
        family = family or len(told)
        for (cell, pair), by_holm in zip(told, holm([pair["p"] for _, pair in told], family), strict=True):
            both = [x for x in scores[cell] if x in scores[pair["against"]]]
            difference = np.array([scores[cell][x] - scores[pair["against"]][x] for x in both])
            what, theirs = f"{cell} less {pair['against']}", pair["difference"]
            low, high = interval(difference, rng)
            near(what, difference.mean(), theirs["mean"], 1e-9)
            if theirs["low"] is not None:
                near(f"{what}, low end", low, theirs["low"], 0.02)
                near(f"{what}, high end", high, theirs["high"], 0.02)
            near(f"{what}, p", p := p_value(difference, rng), pair["p"], 0.01)
            near(f"{what}, Holm's p", by_holm, pair["holm"], 1e-9)
            near(f"{what}, comparisons", family, pair["family"], 0)
            by = f"Holm {pair['holm']:.2g} of {family}"
            print(f"  {what:60s} {difference.mean():+6.1%} [{low:+.1%}, {high:+.1%}]  p {p:.2g}, {by}")

    columns: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # of the table: full cache, R-KV, or the plain method
    for row in rows:
        for pair in row["against"]:
            method = pair["against"].split()[0]
            columns.setdefault("default" if method == row["method"] else method, []).append((row["cell"], pair))
    for told in columns.values():
        compare(told)
    plan = table.with_name(f"{table.stem}-comparisons.json")
    if plan.is_file():
        print("  planned:")
        part = found["provenance"].get("part", {})
        told = [(x["cell"], x) for x in json.loads(plan.read_text(encoding="utf-8"))["comparisons"]]
        compare(told, part.get("comparisons_planned"))
    return wrong


def main() -> None:
    named = [Path(x).resolve() for x in sys.argv[1:]]
    tables = named or [x for x in sorted(RESULTS.rglob("*.json")) if chains_of(x) and '"accuracy"' in x.read_text()]
    wrong = []
    for table in tables:
        chains = chains_of(table)
        if chains is None:
            sys.exit(f"{table} has no chains beside it: {' or '.join(CHAINS)}")
        wrong += check(table, chains)
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
