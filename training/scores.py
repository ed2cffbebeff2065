"""Writes what the reasoner is known for, from an evaluation with the full cache: `python training/scores.py DIR`.

DIR is the output of `reasonalloc evaluate accuracy --methods full`. The gate of later evaluations compares with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reasonalloc.files import read_json, replace_text

CARD = Path(__file__).parents[1] / "ledger" / "reasonalloc_ledger" / "ledger-135m"


def scores(folder: Path) -> dict[str, object]:
    """Accuracy by setting, and how it was measured. Raises ValueError for an evaluation of something else."""
    found = read_json(folder / "accuracy.json", "summary of accuracies")
    row = next((x for x in found["rows"] if x["cell"] == "full"), None)
    made = found["provenance"]
    if row is None or made["task"] != "ledger":
        raise ValueError(f"{folder} is no evaluation of ledger with the full cache")
    kept = ("weights", "dtype", "seed", "max_new_tokens", "temperature", "runs")
    return {"accuracy": row["groups"], "problems": row["problems"], **{k: made[k] for k in kept}}


if __name__ == "__main__":
    replace_text(CARD / "scores.json", json.dumps(scores(Path(sys.argv[1])), indent=1) + "\n")
