"""The table that table.md planned, from the chains alone, of the sizes whose cells are all there:

    python benchmarks/studies/table.py [FOLDER]

A problem's score is the share of its questions that are right, by the first box. Imports nothing of reasonalloc.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from chains import Cell, adjusted, cells_of, compare, folder_given

SIZES = (384, 512, 320)  # slots of R-KV, whose bytes all systems take; in the order in which they are made
PROBLEMS, SYSTEMS = 96, 24
RANKS = (1, 5)  # that are to be told apart
REFERENCE = "rkv"
LEVEL = 0.05  # of Holm's p, below which two systems are told apart
NEAR = 0.05  # bytes further than this from R-KV's are not told as equal


def of_size(cells: dict[str, Cell], size: int) -> dict[str, Cell]:
    """Whole cells of a size, by system, the best first."""
    found = {label.rsplit("-", 1)[0]: x for label, x in cells.items() if label.endswith(f"-{size}")}
    whole = {name: x for name, x in found.items() if len(x.scores) == PROBLEMS}
    return dict(sorted(whole.items(), key=lambda x: -x[1].right))


def show(size: int, ranked: dict[str, Cell], rng: np.random.Generator) -> None:
    """Each system beside R-KV, with how many it is told to be ahead of and behind."""
    names = list(ranked)
    pairs = list(combinations(names, 2))
    found = {pair: compare(ranked[pair[0]].scores, ranked[pair[1]].scores, rng) for pair in pairs}
    holm = dict(zip(pairs, adjusted([x.p for x in found.values()]), strict=True))
    told = [pair for pair in pairs if holm[pair] < LEVEL]
    level = f"Holm's p of all below {LEVEL}"
    print(f"bytes of R-KV at {size} slots; {len(told)} of {len(pairs)} pairs are told apart ({level})")
    for rank, (name, x) in enumerate(ranked.items(), 1):
        off = x.bytes / ranked[REFERENCE].bytes - 1
        figures = f"cut off {x.cut_off:4.0%} {x.tokens:7,.0f} {x.bytes / 1e6:6.2f} MB ({off:+.1%})"
        others = f"ahead of {sum(a == name for a, _ in told):2d}, behind {sum(b == name for _, b in told):2d}"
        print(f"  {rank:2d} {name:20s} {x.right_with_interval(rng):23s} {figures:39s}  {others}", end="")
        if name != REFERENCE:
            ahead = (name, REFERENCE) in found
            pair = (name, REFERENCE) if ahead else (REFERENCE, name)
            own = found[pair] if ahead else -found[pair]
            less = f"{own.mean:+.1%} [{own.low:+.1%}, {own.high:+.1%}]"
            print(f"  less {REFERENCE} {less}, Holm {holm[pair]:.2g}", end="")
        print("  bytes are not equal" if abs(off) > NEAR else "")
    for one, other in (RANKS, (1, 2)):
        pair = names[one - 1], names[other - 1]
        print(f"  {pair[0]} less {pair[1]} ({one} and {other}): {found[pair]}, Holm {holm[pair]:.2g}")


def main() -> None:
    cells = cells_of(folder_given("table"))
    rng = np.random.default_rng(1)
    print(f"{PROBLEMS} problems")
    if "full" in cells and len(cells["full"].scores) == PROBLEMS:
        print(f"     {'full':20s} {cells['full'].right_with_interval(rng)}")
    for size in SIZES:
        ranked = of_size(cells, size)
        if len(ranked) < SYSTEMS:  # nobody looks at a part of a size
            print(f"{size} slots: {len(ranked)} of {SYSTEMS} cells are whole, so none is looked at")
        else:
            show(size, ranked, rng)


if __name__ == "__main__":
    main()
