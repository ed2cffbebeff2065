"""What methods spend on lines of a search that are dead, and what of use they evict:

    python benchmarks/studies/spent.py            # writes benchmarks/results/spent.json; 20 minutes of two cores
    python benchmarks/studies/spent.py --table    # prints what is there

search-135m is fed worked chains, as it decodes; each method keeps 256 slots a head and the prompt. The oracle is told
which lines are dead: it evicts these first, then the oldest. The problems of search.yaml (seed 0): a look.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from chains import interval

RESULTS = Path(__file__).parents[1] / "results"
FILE, WAVE = RESULTS / "spent.json", RESULTS / "search" / "wave-search-4-0.93.json"
METHODS = ("full", "rkv", "reasonalloc", "snapkv", "h2o", "spans", "streaming")
FIELDS = {"dead": ".0%", "alive": ".0%", "nll": ".3f"}  # and how they are written
SETTING, PROBLEMS, SEED, BUDGET = "long", 24, 0, 256


def measured() -> dict[str, Any]:
    import reasonalloc as ra
    from reasonalloc.lab.evaluate.branches import chain_of, spent_all
    from reasonalloc.lab.models import REASONERS
    from reasonalloc.lab.tasks import items
    from reasonalloc.provenance import provenance

    model, tokenizer = ra.load(REASONERS["search"], dtype="bfloat16")
    chains = [chain_of(x, tokenizer) for x in items("search", count=PROBLEMS, seed=SEED, settings=[SETTING])]
    of_budget = {"budget": BUDGET, "keep_prompt": True}
    configs = {x: ra.Config(method=x, **({} if x == "full" else of_budget)) for x in METHODS}
    configs["reasonalloc"] = replace(configs["reasonalloc"], profile=ra.WaveProfile.load(WAVE))
    found = spent_all(model, chains, configs.items(), oracle=configs["rkv"], pad=tokenizer.pad_token_id or 0)
    of = {"setting": SETTING, "budget": BUDGET, "tokens": [len(x.ids) for x in chains]}
    return {**of, "spent": [asdict(x) for x in found], "provenance": provenance(REASONERS["search"], SEED)}


def lines(results: dict[str, Any]) -> list[str]:
    """Of each method, over the problems: slots on dead lines, evicted tokens that were alive, nats a token."""
    rng = np.random.default_rng(1)
    found = ["| | slots on dead lines | alive, of what went | nats a token |", "|---|---|---|---|"]
    for name in dict.fromkeys(x["name"] for x in results["spent"]):
        own = [x for x in results["spent"] if x["name"] == name]
        cells = [mean(np.array([x[field] for x in own]), form, rng) for field, form in FIELDS.items()]
        found.append(f"| {' | '.join([name, *cells])} |")
    return found


def mean(values: np.ndarray, form: str, rng: np.random.Generator) -> str:
    """With its interval; nothing of a cache that was never cut."""
    if np.isnan(values).any():
        return ""
    low, high = (format(x, form) for x in interval(values, rng))
    return f"{values.mean():{form}} [{low}, {high}]"


if __name__ == "__main__":
    if "--table" not in sys.argv:
        from reasonalloc.files import replace_text

        replace_text(FILE, json.dumps(measured(), indent=1) + "\n")
    print(*lines(json.loads(FILE.read_text(encoding="utf-8"))), sep="\n")
