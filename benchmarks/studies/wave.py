"""The wave less R-KV, prompt kept, 384 slots, over the fresh seeds 4101 to 4103 together, from the chains alone:

    python benchmarks/studies/wave.py

The unit is the problem; imports nothing of reasonalloc.
"""

from __future__ import annotations

import numpy as np
from chains import RESULTS, cells_of, of_differences

PAIRS = {
    "notch": ("reasonalloc-wave 384", "rkv 384"),
    "heads": ("wave 384", "R-KV 384"),
    "prompt": ("wave-kept 384", "R-KV-kept 384"),
}


def main() -> None:
    rng, every = np.random.default_rng(1), []
    for name, (ours, theirs) in PAIRS.items():
        cells = cells_of(RESULTS / name)
        difference = np.array([x - cells[theirs].scores[item] for item, x in cells[ours].scores.items()])
        every.append(difference)
        print(f"{name:9s} {len(difference)} problems {of_differences(difference, rng)}")
    together = np.concatenate(every)
    print(f"together  {len(together)} problems {of_differences(together, rng)}")


if __name__ == "__main__":
    main()
