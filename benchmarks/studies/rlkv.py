"""The comparisons that rlkv.md planned, from the chains alone, of the sparsities whose cells are all there:

    python benchmarks/studies/rlkv.py [FOLDER]
    python benchmarks/studies/rlkv.py --budgets    # of the cut cells, from the bytes of the mix of full and local heads

A problem's score is the share of its questions that are right, by the first box; of several files of gates the mean.
Imports nothing of reasonalloc.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from chains import Difference, adjusted, compare, interval, records, score

FOLDER = Path(__file__).parents[1] / "results" / "rlkv-accuracy"
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


def cells_of(sparsity: int) -> list[str]:
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


Scores = dict[str, float]  # by problem


def mean_of(cells: list[Scores]) -> Scores:
    return {item: float(np.mean([x[item] for x in cells])) for item in cells[0]}


def labels_of(name: str, sparsity: int) -> list[str]:
    """Cells of a group, or one."""
    return [f"{x}-{sparsity}" for x in GROUPS.get(name, (name,))]


def main() -> None:
    if sys.argv[1:] == ["--budgets"]:
        budgets()
        return
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    cells: dict[str, Scores] = {}
    figures: dict[str, list[tuple[bool, int, float]]] = {}
    for x in records(folder):
        label = x["cell"]
        cells.setdefault(label, {})[x["item"]] = score(x)
        figures.setdefault(label, []).append((x["finish"] == "length", x["tokens"], x["mean_bytes"]))
    cells = {label: x for label, x in cells.items() if len(x) == PROBLEMS}
    told = [x for x in SPARSITIES if set(cells_of(x)) <= set(cells)]
    for sparsity in SPARSITIES:  # nobody looks at a part of a sparsity
        if sparsity not in told:
            made = sum(x in cells for x in cells_of(sparsity))
            print(f"sparsity {sparsity} %: {made} of {len(cells_of(sparsity))} cells are whole, so none is looked at")
    rng = np.random.default_rng(1)
    print(f"{PROBLEMS} problems")
    shown = [x for sparsity in told for x in cells_of(sparsity)]
    for label in [x for x in ("full", *shown) if x in cells]:
        values = np.array(list(cells[label].values()))
        low, high = interval(values, rng)
        cut, tokens, size = np.mean(figures[label], 0)
        bounds = f"[{low:.1%}, {high:.1%}]"
        print(f"  {label:20s} {values.mean():6.1%} {bounds:16s} cut off {cut:4.0%} {tokens:7,.0f} {size / 1e6:6.1f} MB")
    pairs = [(a, b, sparsity) for sparsity in FIRST if sparsity in told for a, b in PLANNED]
    results = [difference(cells, *pair, rng) for pair in pairs]
    holm = adjusted([x.p for x in results], FAMILY)
    print(f"planned, Holm over {FAMILY}")
    for (a, b, sparsity), found, by_holm in zip(pairs, results, holm, strict=True):
        print(f"  {f'{sparsity} %: {a} less {b}':44s} {found}, Holm {by_holm:.2g}")
    print("secondary, no claim")
    for sparsity in told:
        for a, b in ([] if sparsity in FIRST else PLANNED) + SECONDARY:
            if set(labels_of(b, sparsity)) <= set(cells):
                print(f"  {f'{sparsity} %: {a} less {b}':44s} {difference(cells, a, b, sparsity, rng)}")
        each = [np.mean(list(cells[f"{x}-{sparsity}"].values())) for x in RANDOM]
        print(f"  {sparsity} %: random heads {min(each):.1%} to {max(each):.1%}")


def difference(cells: dict[str, Scores], a: str, b: str, sparsity: int, rng: np.random.Generator) -> Difference:
    ours, theirs = (mean_of([cells[x] for x in labels_of(name, sparsity)]) for name in (a, b))
    return compare(ours, theirs, rng)


if __name__ == "__main__":
    main()
