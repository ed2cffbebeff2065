"""The comparisons that evidence.md planned, from the chains alone, of the budgets whose cells are there:

    python benchmarks/studies/evidence.py [FOLDER]

A problem's score is the mean over its samples of the share of its questions that are right, by the first box. Imports
nothing of reasonalloc.
"""

from __future__ import annotations

import numpy as np
from chains import Cell, cells_of, compare, folder_given, print_family

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
    cells = {label: x for label, x in cells_of(folder_given("evidence")).items() if x.chains == CHAINS}  # whole ones
    made = {budget: sum(label.endswith(f" {budget}") for label in cells) for budget in BUDGETS}
    for budget in [x for x, count in made.items() if count < CELLS]:  # nobody looks at a part of a budget
        print(f"{budget} slots: {made[budget]} of {CELLS} cells are whole, so none is looked at")
        cells = {label: x for label, x in cells.items() if not label.endswith(f" {budget}")}
    rng = np.random.default_rng(1)
    if not cells:
        return
    print(f"{len(next(iter(cells.values())).scores)} problems, {CHAINS} chains a cell")
    print(f"  {'':24s} right              cut off  tokens  MB a row  slots at the end")
    for label, x in cells.items():
        figures = f"{x.cut_off:5.0%} {x.tokens:8,.0f} {x.bytes / 1e6:7.1f} {x.slots:7.0f}"
        print(f"  {label:24s} {x.right_with_interval(rng)} {figures}")
    planned = {f"{a} less {b}": compare(cells[a].scores, cells[b].scores, rng) for a, b in there(PLANNED, cells)}
    print(f"planned, Holm over {FAMILY}")
    print_family(planned, FAMILY)
    print("secondary, no claim")
    for a, b in there(SECONDARY, cells):
        print(f"  {a + ' less ' + b:44s} {compare(cells[a].scores, cells[b].scores, rng)}")


def there(pairs: list[tuple[str, str]], cells: dict[str, Cell]) -> list[tuple[str, str]]:
    every = [(f"{a} {budget}", f"{b} {budget}") for budget in BUDGETS for a, b in pairs]
    return [(a, b) for a, b in every if a in cells and b in cells]


if __name__ == "__main__":
    main()
