"""The wave less R-KV, prompt kept, 384 slots, over the fresh seeds 4101 to 4103 together, from the chains alone:

    python benchmarks/studies/wave.py

The unit is the problem; imports nothing of reasonalloc.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from chains import interval, p_value, records, score

RESULTS = Path(__file__).parents[1] / "results"
PAIRS = {
    "notch": ("reasonalloc-wave 384", "rkv 384"),
    "heads": ("wave 384", "R-KV 384"),
    "prompt": ("wave-kept 384", "R-KV-kept 384"),
}


def main() -> None:
    rng, every = np.random.default_rng(1), []
    for name, (ours, theirs) in PAIRS.items():
        scores: dict[str, dict[str, float]] = {ours: {}, theirs: {}}
        for x in records(RESULTS / name):
            if x["cell"] in scores:
                scores[x["cell"]][x["item"]] = score(x)
        difference = np.array([scores[ours][x] - scores[theirs][x] for x in scores[ours]])
        every.append(difference)
        tell(name, difference, rng)
    tell("together", np.concatenate(every), rng)


def tell(name: str, difference: np.ndarray, rng: np.random.Generator) -> None:
    low, high = interval(difference, rng)
    p = p_value(difference, rng)
    print(f"{name:9s} {len(difference)} problems {difference.mean():+6.1%} [{low:+.1%}, {high:+.1%}]  p {p:.2g}")


if __name__ == "__main__":
    main()
