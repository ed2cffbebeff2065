"""`reasonalloc evaluate accuracy`: what budgets and methods do to a model's answers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from reasonalloc.cli import options, plan, settings, study
from reasonalloc.cli.parsers.accuracy import BUDGETS
from reasonalloc.files import locked, visible
from reasonalloc.lab.evaluate import equal_bytes
from reasonalloc.lab.evaluate.accuracy import cells
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.tasks import other_items
from reasonalloc.methods import METHODS as TABLE
from reasonalloc.methods import methods
from reasonalloc.policy.size import parse_bytes


def run(args: argparse.Namespace) -> int:
    wanted = _cells(args)  # what cannot be is an error before the model is loaded
    own = study.study_of(args)
    if args.dry_run:
        return plan.show(args, options.console(args), [(own, wanted)])
    own.records.open(own.settings)  # and so are other settings
    if args.equal_bytes:
        out = options.console(args)
        with study.status_line(out, own):
            wanted = _matched(args, own, own.with_wave(wanted), out)
    study.run_and_report(args, own, wanted, "accuracy")
    return 0


def _cells(args: argparse.Namespace) -> list[Cell]:
    base = options.settings_of(args, settings.VARIED)
    names = list(args.methods)
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
        return cells(names, BUDGETS[:1], [], base)
    return cells(names, [] if args.ratios else args.budgets or BUDGETS, args.ratios or [], base)


def _matched(args: argparse.Namespace, own: Study, wanted: Sequence[Cell], out: Console) -> list[Cell]:
    seed = args.seed + equal_bytes.SEED
    pilot = other_items(args.task, own.items, count=args.pilot, seed=seed, settings=args.settings)
    used = {x.hash for x in own.items}
    if again := sum(x.hash in used for x in pilot):
        out.print(f"warning: {again} of {len(pilot)} pilot problems are among those evaluated: there are no others")
    with locked(own.folder / ".equal-bytes.lock"):  # shards that start together search once
        matcher = equal_bytes.Matcher(
            lambda cell: own.mean_bytes(cell, pilot), pilot, own.folder, own.settings, args.tolerance,
            lambda text: out.print(visible(text), markup=False, highlight=False),
        )  # fmt: skip
        found, matches = equal_bytes.matched(matcher, args.equal_bytes, wanted)
    out.print(equal_bytes.table(matches, len(pilot)).rich())
    own.about["equal_bytes"] = [asdict(x) for x in matches]
    return found
