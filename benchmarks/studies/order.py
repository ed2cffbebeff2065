"""The comparisons that order.md planned, from the chains alone:

    python benchmarks/studies/order.py [FOLDER]

Imports nothing of reasonalloc.
"""

from __future__ import annotations

import numpy as np
from chains import RESULTS, adjusted, cells_of, compare, folder_given
from notch import RKV, WAVE
from scipy.stats import spearmanr

FIVE = f"{WAVE} wave=notch-kept-5"
ONLY = f"{WAVE} wave=notch-only"


def main() -> None:
    here, rng = cells_of(folder_given("order")), np.random.default_rng(1)
    primary = [compare(here[FIVE].scores, here[x].scores, rng) for x in (WAVE, RKV)]
    for name, found, holm in zip(("the wave", "R-KV"), primary, adjusted([x.p for x in primary]), strict=True):
        print(f"order 5 less {name}: {found}, Holm {holm:.2g}")
    print(f"secondary: the wave less R-KV: {compare(here[WAVE].scores, here[RKV].scores, rng)}")
    print(f"the wave less notch-only: {compare(here[WAVE].scores, here[ONLY].scores, rng)}")
    before = cells_of(RESULTS / "notch")
    orders = [WAVE, *(x for x in here if "notch-kept" in x)]
    then, now = ([x[cell].right for cell in orders] for x in (before, here))
    found = spearmanr(then, now)
    print(f"{len(orders)} orders on two seeds: Spearman's correlation {found.statistic:.2f} (p {found.pvalue:.2g})")
    place, former = (1 + sum(x > each[0] for x in each) for each in (now, then))
    print(f"the wave is {place} of {len(now)} here, {former} before")
    for cell, a, b in sorted(zip(orders, then, now, strict=True), key=lambda x: -x[2]):
        print(f"  {cell.removeprefix(WAVE).strip() or 'the wave':22s} {a:6.1%} {b:6.1%}")


if __name__ == "__main__":
    main()
