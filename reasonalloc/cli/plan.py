"""`--dry-run`: what a study will take, before an hour of it is spent."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from reasonalloc.cli import options
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.evaluate.estimate import UnmeasuredWaves, estimate
from reasonalloc.lab.evaluate.study import Study

__all__ = ["UnmeasuredWaves", "show"]


def show(args: argparse.Namespace, out: Console, parts: Sequence[tuple[Study, Sequence[Cell]]]) -> int:
    """Prints what each study has to make; writes the same as JSON. ValueError for a folder that a run would refuse."""
    for study, _ in parts:
        study.records.would_open(study.asked)
    found = [estimate(study, cells, args.speed) for study, cells in parts]
    for each in found:
        out.print(each.section().rich())
    if len(found) > 1:
        out.print(
            f"together {sum(x.chains for x in found):,} chains, at most {sum(x.tokens for x in found):,} tokens and"
            f" {sum(x.hours for x in found):,.1f} hours",
            highlight=False,
        )
    options.write_json(args.json, {"schema": 1, "studies": [x.as_json() for x in found]})
    return 0
