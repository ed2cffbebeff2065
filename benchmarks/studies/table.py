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
NEAR = 0.05  # bytes further than this from R-KV's are not told as equal


def of_size(cells: dict[str, Cell], size: int) -> dict[str, Cell]:
    """Whole cells of a size, by system, the best first."""
    found = {label.rsplit("-", 1)[0]: x for label, x in cells.items() if label.endswith(f"-{size}")}
    whole = {name: x for name, x in found.items() if len(x.scores) == PROBLEMS}
    return dict(sorted(whole.items(), key=lambda x: -x[1].right))


def show(size: int, ranked: dict[str, Cell], rng: np.random.Generator) -> None:
    names = list(ranked)
    pairs = list(combinations(names, 2))
    found = [compare(ranked[a].scores, ranked[b].scores, rng) for a, b in pairs]
    holm = dict(zip(pairs, adjusted([x.p for x in found]), strict=True))
    told = sum(x < 0.05 for x in holm.values())
    print(f"bytes of R-KV at {size} slots; told apart (Holm's p of all pairs below 0.05): {told} of {len(pairs)} pairs")
    for rank, (name, x) in enumerate(ranked.items(), 1):
        off = x.bytes / ranked["rkv"].bytes - 1
        first = "" if rank == 1 else f"behind the first by Holm's p {holm[names[0], name]:.2g}"
        far = "  bytes are not equal" if abs(off) > NEAR else ""
        figures = f"cut off {x.cut_off:4.0%} {x.tokens:7,.0f} {x.bytes / 1e6:6.2f} MB ({off:+.1%})"
        print(f"  {rank:2d} {name:20s} {x.right_with_interval(rng):23s} {figures}  {first}{far}")
    one, other = (names[rank - 1] for rank in RANKS)
    print(f"  first less fifth: {found[pairs.index((one, other))]}, Holm {holm[one, other]:.2g}")


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
