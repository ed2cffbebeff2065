"""The comparisons that notch.md planned, from the chains alone:

    python benchmarks/studies/notch.py [FOLDER]

The unit is the problem: its score is the share of its four questions that are right, by the first box. Imports nothing
of reasonalloc.
"""

from __future__ import annotations

import numpy as np
from chains import cells_of, compare, folder_given, print_family

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
    cells = cells_of(folder_given("notch"))
    problems = len(cells["full"].scores)
    cells = {label: x for label, x in cells.items() if len(x.scores) == problems}  # whole ones
    print(f"{problems} problems")
    rng = np.random.default_rng(1)
    for label, x in cells.items():
        print(f"  {label:44s} {x.right_with_interval(rng)}  cut off {x.cut_off:.0%}")
    for title, pairs in (("primary, Holm over these", PRIMARY), ("secondary", SECONDARY)):
        there = [(a, b) for a, b in pairs if a in cells and b in cells]
        print(f"{title} {len(there)}")
        found = {f"{a} less {b}": compare(cells[a].scores, cells[b].scores, rng) for a, b in there}
        print_family(found, width=80)
    orders = {label: x.right for label, x in cells.items() if "notch-kept" in label}
    if orders and WAVE in cells:
        measured = cells[WAVE].right
        better = sum(x >= measured for x in orders.values())
        values, p = list(orders.values()), (better + 1) / (len(orders) + 1)
        spread = f"{min(values):.1%} to {max(values):.1%}, mean {np.mean(values):.1%}"
        print(f"{len(orders)} orders that keep the notch: {spread}; the wave has {measured:.1%}, p {p:.2g}")


if __name__ == "__main__":
    main()
