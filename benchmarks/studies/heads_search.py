"""The head shares of search-135m that evidence-search.yaml gives:

    python benchmarks/studies/heads_search.py

Measured on four of its own chains, of other sizes than the study's and of a seed of their own, for what 768 slots leave
the chain beside a prompt of 97 tokens and the window.
"""

from __future__ import annotations

from pathlib import Path

import reasonalloc as ra
from reasonalloc.hf.head_profile import head_profile
from reasonalloc.lab.models import REASONERS
from reasonalloc.lab.tasks import items
from reasonalloc.policy.gates import write_gates

FILE = Path(__file__).with_name("heads-search.tsv")
SETTINGS, PROBLEMS, SEED = ["middle", "numbers=11,lines=100-180"], 2, 20003
SLOTS, TOKENS = 660, 2048


def main() -> None:
    model, tokenizer = ra.load(REASONERS["search"])
    prompts = [x.prompt for x in items("search", count=PROBLEMS, seed=SEED, settings=SETTINGS)]
    write_gates(FILE, head_profile(model, tokenizer, prompts, slots=SLOTS, max_new_tokens=TOKENS))
    print(FILE.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
