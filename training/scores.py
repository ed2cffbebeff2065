"""Writes what the reasoner is known for, from an evaluation with the full cache: `python training/scores.py DIR`.

DIR is the output of `reasonalloc evaluate accuracy --methods full` of a reasoner that comes with reasonalloc, on its
task. The gate of later evaluations compares with what is written into its folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reasonalloc.files import read_json, replace_text
from reasonalloc.lab.models import REASONERS

CARDS = Path(__file__).parents[1] / "ledger" / "reasonalloc_ledger"


def scores(folder: Path) -> dict[str, object]:
    """Accuracy by setting, and how it was measured. Raises ValueError for an evaluation of something else."""
    found = read_json(folder / "accuracy.json", "summary of accuracies")
    row = next((x for x in found["rows"] if x["cell"] == "full"), None)
    made = found["provenance"]
    if row is None or REASONERS.get(made["model"]) != made["task"]:
        named = ", ".join(f"{model} on {task}" for model, task in REASONERS.items())
        raise ValueError(f"{folder} is no evaluation with the full cache of one of {named}")
    kept = ("weights", "dtype", "seed", "max_new_tokens", "temperature", "runs")
    own = {"model": made["model"], "accuracy": row["groups"], "problems": row["problems"]}
    return {**own, **{k: made[k] for k in kept}}


if __name__ == "__main__":
    found = scores(Path(sys.argv[1]))
    replace_text(CARDS / str(found.pop("model")) / "scores.json", json.dumps(found, indent=1) + "\n")
