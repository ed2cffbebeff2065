"""The wave less R-KV, prompt kept, 384 slots, over the fresh seeds 4101 to 4103 together, from the chains alone:

    python benchmarks/studies/wave.py

The unit is the problem; imports nothing of reasonalloc.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from chains import of_differences, records, score

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
        print(f"{name:9s} {len(difference)} problems {of_differences(difference, rng)}")
    together = np.concatenate(every)
    print(f"together  {len(together)} problems {of_differences(together, rng)}")


if __name__ == "__main__":
    main()
