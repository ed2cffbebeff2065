"""Writes what a reasoner is known for, from an evaluation with the full cache: `python training/scores.py DIR`.

DIR is the output of `reasonalloc evaluate accuracy --methods full`; its task says which reasoner. The gate of later
evaluations compares with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reasonalloc.files import read_json, replace_text
from reasonalloc.lab.models import REASONERS

CARDS = Path(__file__).parents[1] / "ledger" / "reasonalloc_ledger"


def scores(folder: Path) -> tuple[str, dict[str, object]]:
    """The reasoner, and its accuracy by setting with how it was measured.

    Raises ValueError for an evaluation of something else.
    """
    found = read_json(folder / "accuracy.json", "summary of accuracies")
    row = next((x for x in found["rows"] if x["cell"] == "full"), None)
    made = found["provenance"]
    if row is None or made["task"] not in REASONERS:
        raise ValueError(f"{folder} is no evaluation of {' or '.join(REASONERS)} with the full cache")
    kept = ("weights", "dtype", "seed", "max_new_tokens", "temperature", "runs")
    known = {"accuracy": row["groups"], "problems": row["problems"], **{k: made[k] for k in kept}}
    return REASONERS[made["task"]], known


if __name__ == "__main__":
    reasoner, known = scores(Path(sys.argv[1]))
    replace_text(CARDS / reasoner / "scores.json", json.dumps(known, indent=1) + "\n")
