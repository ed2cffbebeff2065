"""The comparisons that order.md planned, from the chains alone:

    python benchmarks/studies/order.py [FOLDER]

Imports nothing of reasonalloc.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from chains import adjusted, compare, records, score
from notch import RKV, WAVE
from scipy.stats import spearmanr

RESULTS = Path(__file__).parents[1] / "results"
FIVE = f"{WAVE} wave=notch-kept-5"
ONLY = f"{WAVE} wave=notch-only"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "order"
    here, rng = scores(folder), np.random.default_rng(1)
    primary = [compare(here[FIVE], here[x], rng) for x in (WAVE, RKV)]
    for name, found, holm in zip(("the wave", "R-KV"), primary, adjusted([x.p for x in primary]), strict=True):
        print(f"order 5 less {name}: {found}, Holm {holm:.2g}")
    print(f"secondary: the wave less R-KV: {compare(here[WAVE], here[RKV], rng)}")
    print(f"the wave less notch-only: {compare(here[WAVE], here[ONLY], rng)}")
    before = scores(RESULTS / "notch")
    orders = [WAVE, *(x for x in here if "notch-kept" in x)]
    then, now = ([float(np.mean(list(x[cell].values()))) for cell in orders] for x in (before, here))
    found = spearmanr(then, now)
    print(f"{len(orders)} orders on two seeds: Spearman's correlation {found.statistic:.2f} (p {found.pvalue:.2g})")
    place, former = (1 + sum(x > each[0] for x in each) for each in (now, then))
    print(f"the wave is {place} of {len(now)} here, {former} before")
    for cell, a, b in sorted(zip(orders, then, now, strict=True), key=lambda x: -x[2]):
        print(f"  {cell.removeprefix(WAVE).strip() or 'the wave':22s} {a:6.1%} {b:6.1%}")


def scores(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for x in records(folder):
        found.setdefault(x["cell"], {})[x["item"]] = score(x)
    return found


if __name__ == "__main__":
    main()
