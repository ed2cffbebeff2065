"""`reasonalloc evaluate accuracy`: what budgets and methods do to a model's answers."""

from __future__ import annotations

import argparse

from reasonalloc.cli import options, plan, settings, study
from reasonalloc.cli.parsers.accuracy import BUDGETS
from reasonalloc.lab.evaluate.accuracy import cells
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.methods import METHODS as TABLE
from reasonalloc.methods import methods
from reasonalloc.policy.size import parse_bytes


def run(args: argparse.Namespace) -> int:
    wanted = _cells(args)  # what cannot be is an error before the model is loaded
    evaluation = study.study_of(args)
    if args.dry_run:
        return plan.show(args, options.console(args), [(evaluation, wanted)])
    evaluation.records.open(evaluation.settings)  # and so are other settings
    if args.equal_bytes:
        out = options.console(args)
        with study.status_line(out, evaluation):
            pilot = study.Pilot(args.task, args.pilot, args.seed, args.settings, args.tolerance)
            wanted = study.at_equal_bytes(evaluation, args.equal_bytes, evaluation.with_wave(wanted), pilot, out)
    study.run_and_report(args, evaluation, wanted, "accuracy")
    return 0


def _cells(args: argparse.Namespace) -> list[Cell]:
    given, names = options.settings_of(args, settings.VARIED), list(args.methods)
    if args.equal_bytes in TABLE:
        args.equal_bytes = TABLE.own(args.equal_bytes)
        if args.equal_bytes not in [TABLE.own(x) for x in names]:
            raise ValueError(f"--equal-bytes {args.equal_bytes}: it is none of --methods {','.join(names)}")
        if TABLE[args.equal_bytes].unlimited:
            raise ValueError(f"--equal-bytes {args.equal_bytes}: it keeps every token; give a method with a budget")
    elif args.equal_bytes:
        try:
            parse_bytes(args.equal_bytes)
        except ValueError as error:
            raise ValueError(f"--equal-bytes takes one of {', '.join(methods())} or bytes: {error}") from error
        if args.budgets or args.ratios:
            raise ValueError("--equal-bytes with a size finds all budgets: give no --budgets and no --ratios")
        return cells(names, BUDGETS[:1], [], given)
    return cells(names, [] if args.ratios else args.budgets or BUDGETS, args.ratios or [], given)
