"""The comparisons that notch.md planned, from the chains alone:

    python benchmarks/studies/notch.py [FOLDER]

The unit is the problem: its score is the share of its four questions that are right, by the first box. Imports nothing
of reasonalloc.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from chains import adjusted, compare, interval, records, score

FOLDER = Path(__file__).parents[1] / "results" / "notch"
WAVE, RKV = "reasonalloc-wave 384", "rkv 384"
PRIMARY = [
    (WAVE, f"{WAVE} wave=notch-only"),
    (f"{WAVE} wave=notch-only", RKV),
    (f"{WAVE} wave=no-notch", RKV),
    (f"{WAVE} prompt=spared", RKV),
    (f"{WAVE} prompt=spared", WAVE),
]
SECONDARY = [
    (WAVE, RKV),
    ("reasonalloc 384", RKV),
    ("reasonalloc 384 prompt=spared", RKV),
    ("reasonalloc 384 prompt=spared", "reasonalloc 384"),
    ("reasonalloc 384", WAVE),
]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    scores: dict[str, dict[str, float]] = {}
    cut: dict[str, list[bool]] = {}
    for x in records(folder):
        scores.setdefault(x["cell"], {})[x["item"]] = score(x)
        cut.setdefault(x["cell"], []).append(x["finish"] == "length")
    problems = len(scores["full"])
    scores = {cell: x for cell, x in scores.items() if len(x) == problems}  # whole cells
    print(f"{problems} problems")
    rng = np.random.default_rng(1)
    for cell, each in scores.items():
        values = np.array(list(each.values()))
        low, high = interval(values, rng)
        print(f"  {cell:44s} {values.mean():6.1%} [{low:.1%}, {high:.1%}]  cut off {np.mean(cut[cell]):.0%}")
    for title, pairs in (("primary, Holm over these", PRIMARY), ("secondary", SECONDARY)):
        told = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
        print(f"{title} {len(told)}")
        results = [compare(scores[a], scores[b], rng) for a, b in told]
        holm = adjusted([x.p for x in results])
        for (a, b), found, by_holm in zip(told, results, holm, strict=True):
            print(f"  {a + ' less ' + b:80s} {found}, Holm {by_holm:.2g}")
    orders = {x: np.mean(list(y.values())) for x, y in scores.items() if "notch-kept" in x}
    if orders and WAVE in scores:
        own = np.mean(list(scores[WAVE].values()))
        better = sum(x >= own for x in orders.values())
        values, p = list(orders.values()), (better + 1) / (len(orders) + 1)
        spread = f"{min(values):.1%} to {max(values):.1%}, mean {np.mean(values):.1%}"
        print(f"{len(orders)} orders that keep the notch: {spread}; the wave has {own:.1%}, p {p:.2g}")


if __name__ == "__main__":
    main()
