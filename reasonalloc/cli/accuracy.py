"""`reasonalloc evaluate accuracy`: what budgets and methods do to a model's answers."""

from __future__ import annotations

import argparse

from reasonalloc.cli import options, plan, settings, study
from reasonalloc.cli.parsers.accuracy import BUDGETS
from reasonalloc.config import Config
from reasonalloc.lab.evaluate.accuracy import cells


def run(args: argparse.Namespace) -> int:
    own = study.study_of(args)
    base = Config(method="full", **options.settings_of(args, settings.VARIED))
    wanted = cells(args.methods, [] if args.ratios else args.budgets or BUDGETS, args.ratios or [], base)
    if args.dry_run:
        return plan.show(args, options.console(args), [(own, wanted)])
    own.records.open(own.settings)  # other settings are an error before the model is loaded
    wanted = own.with_wave(wanted)
    study.run_and_report(args, own, wanted, "accuracy")
    return 0
