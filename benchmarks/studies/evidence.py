"""The comparisons that evidence.md planned, from the chains alone, of the budgets whose cells are there:

    python benchmarks/studies/evidence.py [benchmarks/results/evidence-search]

A problem's score is the mean over its samples of the share of its questions that are right, by the first box. Imports
nothing of reasonalloc.
"""

from __future__ import annotations

import numpy as np
from chains import Cell, cells_of, compare, folder_given, print_family

BUDGETS = {"evidence": (384, 512, 288), "evidence-search": (768, 640, 896)}  # by the folder's name, as planned
SYSTEMS = ("R-KV", "wave", "reasonalloc", "routing", "heads", "wave-heads", "newer")  # and for evidence.yaml "order"
CHAINS = 192  # of a cell
PLANNED = [
    ("wave-kept", "R-KV-kept"),
    ("reasonalloc-kept", "R-KV-kept"),
    ("heads-kept", "R-KV-kept"),
    ("wave-heads-kept", "R-KV-kept"),
    ("newer-kept", "R-KV-kept"),
    ("R-KV-kept", "R-KV"),
    ("order-kept", "wave-kept"),
]
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
    folder = folder_given("evidence")
    study = folder.resolve().name
    budgets = BUDGETS[study]
    systems = [*SYSTEMS, "order"] if study == "evidence" else SYSTEMS
    planned = [(a, b) for a, b in PLANNED if a.removesuffix("-kept") in systems]
    family = len(planned) * len(budgets)
    whole = {label: x for label, x in cells_of(folder).items() if x.chains == CHAINS}
    cells = {"full": whole["full"]} if "full" in whole else {}
    for budget in budgets:
        labels = [f"{x}{kept} {budget}" for x in systems for kept in ("-kept", "")]
        there = {label: whole[label] for label in labels if label in whole}
        if len(there) < len(labels):  # nobody looks at a part of a budget
            print(f"{budget} slots: {len(there)} of {len(labels)} cells are whole, so none is looked at")
        else:
            cells |= there
    if not cells:
        return
    rng = np.random.default_rng(1)
    print(f"{len(next(iter(cells.values())).scores)} problems, {CHAINS} chains a cell")
    print(f"  {'':24s} right              cut off  tokens  MB a row  slots at the end")
    for label, x in cells.items():
        figures = f"{x.cut_off:5.0%} {x.tokens:8,.0f} {x.bytes / 1e6:7.1f} {x.slots:7.0f}"
        print(f"  {label:24s} {x.right_with_interval(rng)} {figures}")
    found = {f"{a} less {b}": compare(cells[a].scores, cells[b].scores, rng) for a, b in at(budgets, planned, cells)}
    print(f"planned, Holm over {family}")
    print_family(found, family)
    print("secondary, no claim")
    for a, b in at(budgets, SECONDARY, cells):
        print(f"  {a + ' less ' + b:44s} {compare(cells[a].scores, cells[b].scores, rng)}")


def at(budgets: tuple[int, ...], pairs: list[tuple[str, str]], cells: dict[str, Cell]) -> list[tuple[str, str]]:
    """The pairs of labels that there are."""
    every = [(f"{a} {budget}", f"{b} {budget}") for budget in budgets for a, b in pairs]
    return [(a, b) for a, b in every if a in cells and b in cells]


if __name__ == "__main__":
    main()
