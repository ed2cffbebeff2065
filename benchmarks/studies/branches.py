"""How much of a search is of use, and how much of what is written is dead:

    python benchmarks/studies/branches.py                    # writes benchmarks/results/branches.json

Of the worked chains of the problems of search.yaml, in tokens: of use at a step are the prompt and the lines
whose number has not been put back.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import reasonalloc as ra
from reasonalloc.files import replace_text
from reasonalloc.lab.evaluate.branches import Ends, chain_of
from reasonalloc.lab.models import REASONERS
from reasonalloc.lab.tasks import items
from reasonalloc.provenance import provenance

FILE = Path(__file__).parents[1] / "results" / "branches.json"
SETTING, PROBLEMS, SEED = "long", 24, 0


def live(ends: Ends, prompt: int) -> Ends:
    """Tokens of use at each step of a chain."""
    return np.array([np.count_nonzero(ends[:seen] > seen) for seen in range(prompt, len(ends))])


def main() -> None:
    _, tokenizer = ra.load(REASONERS["search"], dtype="bfloat16")
    problems = items("search", count=PROBLEMS, seed=SEED, settings=[SETTING])
    chains = [chain_of(x, tokenizer) for x in problems]
    counts = [live(x.ends, len(x.prompt)) for x in chains]
    dead = [1 - np.mean(own / np.arange(len(x.prompt), len(x.ends))) for own, x in zip(counts, chains, strict=True)]
    found = {
        "problems": PROBLEMS,
        "setting": SETTING,
        "mean": float(np.mean([own.mean() for own in counts])),
        "most": int(max(own.max() for own in counts)),
        "dead": float(np.mean(dead)),
    }
    replace_text(FILE, json.dumps({**found, **provenance(seed=SEED)}, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
