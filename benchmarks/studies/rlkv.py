"""The comparisons that rlkv.md planned, from the chains alone, of the sparsities whose cells are all there:

    python benchmarks/studies/rlkv.py [FOLDER]
    python benchmarks/studies/rlkv.py --budgets    # of the cut cells, from the bytes of the mix of full and local heads

A problem's score is the share of its questions that are right, by the first box; of several files of gates the mean.
Imports nothing of reasonalloc.
"""

from __future__ import annotations

import sys

import numpy as np
from chains import Cell, Difference, cells_of, compare, folder_given, mean_of, print_family
from checks import checks, counts

SPARSITIES = (40, 60, 50, 20, 80)  # %, in the order in which they are made
FIRST = (40, 60)  # of the planned comparisons
RLKV, RANDOM = ("seed0", "seed1"), tuple(f"random-{i}" for i in range(5))
CUT = ("R-KV-kept", "R-KV", "reasonalloc-kept", "newest-kept")  # at the bytes of the mix
GROUPS = {"rlkv": RLKV, "random": RANDOM}
PLANNED = [("rlkv", "random"), ("rlkv", "duo"), ("rlkv", "R-KV-kept")]
FAMILY = len(PLANNED) * len(FIRST)
SECONDARY = [
    ("rlkv", "R-KV"),
    ("rlkv", "reasonalloc-kept"),
    ("rlkv", "newest-kept"),
    ("duo", "random"),
    ("seed0", "seed1"),
]
PROBLEMS = 96
PROMPT, CHAIN = 212, 1250  # tokens, means of full-cache chains of seeds 4102 and 4103
HEADS, LOCAL, INTERVAL, PAGE = 90, 16 + 64, 128, 16


def labels_of(sparsity: int) -> list[str]:
    """Labels of a sparsity's cells. Above 60 % the budget is smaller than the prompt, and no prompt can be kept."""
    cut = [x for x in CUT if sparsity <= 60 or not x.endswith("-kept")]
    return [f"{x}-{sparsity}" for x in (*RLKV, "duo", *RANDOM, *cut)]


def whole_pages(slots: int) -> int:
    return -(-slots // PAGE) * PAGE


def mixed_slots(sparsity: int, prompt: int = PROMPT, chain: int = CHAIN) -> float:
    """Slots of a head, in whole pages, over the steps of a chain: full heads hold all tokens, local ones LOCAL."""
    local = round(sparsity / 100 * HEADS)
    full = np.mean([whole_pages(prompt + t) for t in range(1, chain + 1)])
    return float((HEADS - local) * full + local * whole_pages(LOCAL)) / HEADS


def cut_slots(budget: int, prompt: int = PROMPT, chain: int = CHAIN) -> float:
    """The same where every head is cut to a budget every INTERVAL tokens."""
    held, taken = prompt, 0
    for t in range(1, chain + 1):
        held += 1
        if t % INTERVAL == 0:
            held = min(held, budget)
        taken += whole_pages(held)
    return taken / chain


def budget_of(sparsity: int) -> int:
    """Whose mean bytes are nearest those of the mix."""
    aim = mixed_slots(sparsity)
    return min(range(LOCAL, PROMPT + CHAIN), key=lambda budget: abs(cut_slots(budget) - aim))


def budgets() -> None:
    print("sparsity  budget  slots a head, mean: mix / cut")
    for sparsity in sorted(SPARSITIES):
        budget = budget_of(sparsity)
        print(f"{sparsity:6d} % {budget:7d} {mixed_slots(sparsity):20.1f} / {cut_slots(budget):.1f}")


def members_of(name: str, sparsity: int) -> list[str]:
    """Cells of a group, or one."""
    return [f"{x}-{sparsity}" for x in GROUPS.get(name, (name,))]


def main() -> None:
    if sys.argv[1:] == ["--budgets"]:
        budgets()
        return
    folder = folder_given("rlkv-accuracy")
    cells = {label: x for label, x in cells_of(folder).items() if len(x.scores) == PROBLEMS}
    whole = [x for x in SPARSITIES if set(labels_of(x)) <= set(cells)]
    for sparsity in SPARSITIES:  # nobody looks at a part of a sparsity
        if sparsity not in whole:
            made = sum(x in cells for x in labels_of(sparsity))
            print(f"sparsity {sparsity} %: {made} of {len(labels_of(sparsity))} cells are whole, so none is looked at")
    rng = np.random.default_rng(1)
    print(f"{PROBLEMS} problems")
    shown = [x for sparsity in whole for x in labels_of(sparsity)]
    for label in [x for x in ("full", *shown) if x in cells]:
        x = cells[label]
        figures = f"cut off {x.cut_off:4.0%} {x.tokens:7,.0f} {x.bytes / 1e6:6.1f} MB"
        print(f"  {label:20s} {x.right_with_interval(rng):23s} {figures}")
    pairs = [(a, b, sparsity) for sparsity in FIRST if sparsity in whole for a, b in PLANNED]
    planned = {f"{sparsity} %: {a} less {b}": difference(cells, a, b, sparsity, rng) for a, b, sparsity in pairs}
    print(f"planned, Holm over {FAMILY}")
    print_family(planned, FAMILY)
    print("secondary, no claim")
    for sparsity in whole:
        for a, b in ([] if sparsity in FIRST else PLANNED) + SECONDARY:
            if set(members_of(b, sparsity)) <= set(cells):
                print(f"  {f'{sparsity} %: {a} less {b}':44s} {difference(cells, a, b, sparsity, rng)}")
        each = [cells[f"{x}-{sparsity}"].right for x in RANDOM]
        print(f"  {sparsity} %: random heads {min(each):.1%} to {max(each):.1%}")

    print("counted after looking at chains, not planned: checks a chain")
    for label, count in checks(counts(folder)).items():
        if label in ("full", *shown):
            print(f"  {label:20s} {count:.1f}")


def difference(cells: dict[str, Cell], a: str, b: str, sparsity: int, rng: np.random.Generator) -> Difference:
    ours, theirs = (mean_of([cells[x].scores for x in members_of(name, sparsity)]) for name in (a, b))
    return compare(ours, theirs, rng)


if __name__ == "__main__":
    main()
