"""The wave less R-KV, prompt kept, 384 slots, over the fresh seeds 4101 to 4103 together, from the chains alone:

    python benchmarks/studies/wave.py

The unit is the problem; imports nothing of reasonalloc.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

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
        for line in gzip.decompress((RESULTS / name / "generations.jsonl.gz").read_bytes()).splitlines():
            x = json.loads(line)
            if x["cell"] in scores:
                scores[x["cell"]][x["item"]] = float(np.mean(x["right"]))
        difference = np.array([scores[ours][x] - scores[theirs][x] for x in scores[ours]])
        every.append(difference)
        tell(name, difference, rng)
    tell("together", np.concatenate(every), rng)


def tell(name: str, difference: np.ndarray, rng: np.random.Generator) -> None:
    n = len(difference)
    low, high = np.quantile(difference[rng.integers(n, size=(10_000, n))].mean(1), [0.025, 0.975])
    signs = rng.integers(2, size=(100_000, n), dtype=np.int8) * 2 - 1
    p = (1 + int((np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).sum())) / (1 + len(signs))
    print(f"{name:9s} {n} problems {difference.mean():+6.1%} [{low:+.1%}, {high:+.1%}]  p {p:.2g}")


if __name__ == "__main__":
    main()
