"""`reasonalloc ablate`: what one part or setting of the method is worth."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from reasonalloc.cli import options, plan, settings, study
from reasonalloc.lab.evaluate.ablations import ABLATIONS, Around, cells_of


def run(args: argparse.Namespace) -> int:
    if args.list:
        _list(options.console(args))
        options.write_json(args.json, {"schema": 1, "ablations": {x.name: x.question for x in ABLATIONS.values()}})
        return 0
    if args.name is None:
        raise ValueError("name an ablation (reasonalloc ablate --list shows them)")
    ablation, evaluation = ABLATIONS[args.name], study.study_of(args)
    waves, out = plan.UnmeasuredWaves(evaluation.task) if args.dry_run else evaluation.waves, options.console(args)
    out.print(ablation.question)
    with study.status_line(out, evaluation):
        cells = cells_of(ablation, Around(waves, args.budget, options.settings_of(args, settings.CHOSEN)))
    if args.dry_run:
        return plan.show(args, out, [(evaluation, cells)])
    study.run_and_report(args, evaluation, cells, ablation.name, ablation.question)
    return 0


def _list(out: Console) -> None:
    table = Table(show_header=False, box=None)
    for ablation in ABLATIONS.values():
        table.add_row(ablation.name, ablation.question)
    out.print(table)
