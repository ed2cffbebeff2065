"""The comparisons that evidence.md planned, from the chains alone, of the budgets whose cells are there:

    python benchmarks/studies/evidence.py [FOLDER]

A problem's score is the mean over its samples of the share of its questions that are right, by the first box. Imports
nothing of reasonalloc.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from chains import adjusted, compare, interval, records, score

FOLDER = Path(__file__).parents[1] / "results" / "evidence"
BUDGETS = (384, 512, 288)
CELLS, CHAINS = 16, 192  # of a budget, of a cell
PLANNED = [
    ("wave-kept", "R-KV-kept"),
    ("reasonalloc-kept", "R-KV-kept"),
    ("heads-kept", "R-KV-kept"),
    ("wave-heads-kept", "R-KV-kept"),
    ("newer-kept", "R-KV-kept"),
    ("R-KV-kept", "R-KV"),
    ("order-kept", "wave-kept"),
]
FAMILY = len(PLANNED) * len(BUDGETS)
SECONDARY = [
    ("wave-heads-kept", "wave-kept"),
    ("reasonalloc-kept", "wave-kept"),
    ("routing-kept", "R-KV-kept"),
    ("order-kept", "R-KV-kept"),
    ("order-kept", "newer-kept"),
    ("wave", "R-KV"),
    ("reasonalloc", "R-KV"),
    ("heads", "R-KV"),
    ("order", "R-KV"),
]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    scores: dict[str, dict[str, list[float]]] = {}
    figures: dict[str, list[tuple[bool, int, float, float]]] = {}
    for x in records(folder):
        scores.setdefault(x["cell"], {}).setdefault(x["item"], []).append(score(x))
        figures.setdefault(x["cell"], []).append((x["finish"] == "length", x["tokens"], x["mean_bytes"], x["slots"]))
    cells = {
        cell: {item: float(np.mean(each)) for item, each in x.items()}
        for cell, x in scores.items()
        if sum(map(len, x.values())) == CHAINS  # whole cells
    }
    made = {budget: sum(cell.endswith(f" {budget}") for cell in cells) for budget in BUDGETS}
    for budget in [x for x, count in made.items() if count < CELLS]:  # nobody looks at a part of a budget
        print(f"{budget} slots: {made[budget]} of {CELLS} cells are whole, so none is looked at")
        cells = {cell: x for cell, x in cells.items() if not cell.endswith(f" {budget}")}
    rng = np.random.default_rng(1)
    if not cells:
        return
    print(f"{len(next(iter(cells.values())))} problems, {CHAINS} chains a cell")
    print(f"  {'':24s} right              cut off  tokens  MB a row  slots at the end")
    for cell, each in cells.items():
        values = np.array(list(each.values()))
        low, high = interval(values, rng)
        cut, tokens, size, slots = np.mean(figures[cell], 0)
        bounds = f"[{low:.1%}, {high:.1%}]"
        print(f"  {cell:24s} {values.mean():6.1%} {bounds} {cut:5.0%} {tokens:8,.0f} {size / 1e6:7.1f} {slots:7.0f}")
    planned = there(PLANNED, cells)
    results = [compare(cells[a], cells[b], rng) for a, b in planned]
    holm = adjusted([x.p for x in results], FAMILY)
    print(f"planned, Holm over {FAMILY}")
    for (a, b), found, by_holm in zip(planned, results, holm, strict=True):
        print(f"  {a + ' less ' + b:44s} {found}, Holm {by_holm:.2g}")
    print("secondary, no claim")
    for a, b in there(SECONDARY, cells):
        print(f"  {a + ' less ' + b:44s} {compare(cells[a], cells[b], rng)}")


def there(pairs: list[tuple[str, str]], cells: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    every = [(f"{a} {budget}", f"{b} {budget}") for budget in BUDGETS for a, b in pairs]
    return [(a, b) for a, b in every if a in cells and b in cells]


if __name__ == "__main__":
    main()
