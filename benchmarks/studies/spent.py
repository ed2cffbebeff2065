"""What methods spend on lines of a search that are dead, what of use they evict, and what an oracle answers:

    python benchmarks/studies/spent.py            # writes benchmarks/results/spent.json
    python benchmarks/studies/spent.py --table    # prints what is there

search-135m is fed worked chains, as it decodes; each method keeps 256 slots a head and the prompt. The oracle is told
which lines are dead: it evicts these first, then the oldest. It writes chains of its own too. Problems of search.yaml
(seed 0): a look.
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
METHODS = ("full", "rkv", "reasonalloc", "h2o", "streaming")
FIELDS = {"dead": ".0%", "alive": ".0%", "nll": ".3f"}  # and how they are written
SETTING, SEED, BUDGET, ORACLE_BUDGETS = "long", 0, 256, (256, 512)  # slots, and those of the oracle's own chains
FED, ASKED = 12, 24  # problems


def measured() -> dict[str, Any]:
    import reasonalloc as ra
    from reasonalloc.hf.decode import Sampling
    from reasonalloc.lab.evaluate.branches import chain_of, spent_all
    from reasonalloc.lab.evaluate.oracle import answer_with_oracle
    from reasonalloc.lab.models import REASONERS
    from reasonalloc.lab.tasks import items
    from reasonalloc.provenance import provenance

    model, tokenizer = ra.load(REASONERS["search"], dtype="bfloat16")
    asked = items("search", count=ASKED, seed=SEED, settings=[SETTING])
    chains = [chain_of(x, tokenizer) for x in asked[:FED]]
    sizes = {x: ra.Config(method="rkv", budget=x, keep_prompt=True) for x in (BUDGET, *ORACLE_BUDGETS)}
    configs = {x: ra.Config(method=x) if x == "full" else replace(sizes[BUDGET], method=x) for x in METHODS}
    configs["reasonalloc"] = replace(configs["reasonalloc"], profile=ra.WaveProfile.load(WAVE))
    found = spent_all(model, chains, configs.items(), oracle=configs["rkv"], pad=tokenizer.pad_token_id or 0)
    sampling = Sampling(max_new_tokens=4096)
    chosen = {x: answer_with_oracle(model, tokenizer, asked, sizes[x], sampling) for x in ORACLE_BUDGETS}
    return {
        "setting": SETTING,
        "budget": BUDGET,
        "tokens": [len(x.ids) for x in chains],
        "spent": [asdict(x) for x in found],
        "oracle": {str(budget): [asdict(x) for x in own] for budget, own in chosen.items()},
        "provenance": provenance(REASONERS["search"], SEED),
    }


def lines(results: dict[str, Any]) -> list[str]:
    """Of each method, over the problems: slots on dead lines, evicted tokens that were alive, nats a token."""
    rng = np.random.default_rng(1)
    found = ["| | slots on dead lines | alive, of what went | nats a token |", "|---|---|---|---|"]
    for name in dict.fromkeys(x["name"] for x in results["spent"]):
        own = [x for x in results["spent"] if x["name"] == name]
        cells = [mean(np.array([x[field] for x in own]), form, rng) for field, form in FIELDS.items()]
        found.append(f"| {' | '.join([name, *cells])} |")
    for budget, chains in results["oracle"].items():
        right = mean(np.array([np.mean(x["right"]) for x in chains]), ".0%", rng)
        tokens = np.mean([x["tokens"] for x in chains])
        cut = np.mean([x["finish"] == "length" for x in chains])
        found.append(f"the oracle's own chains, {budget} slots: {right} right, {tokens:,.0f} tokens, {cut:.0%} cut off")
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
