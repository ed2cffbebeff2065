"""`reasonalloc ablate`: what one part or setting of the method is worth."""

from __future__ import annotations

import argparse
from typing import Any

from reasonalloc.cli import options, study
from reasonalloc.lab.evaluate.ablations import ABLATIONS, Around, cells_of


def add(subparsers: Any) -> None:
    listed = "; ".join(f"{x.name}: {x.question}" for x in ABLATIONS.values())
    parser = subparsers.add_parser(
        "ablate",
        help="vary one thing and measure the answers",
        description=f"Measures accuracy as `evaluate accuracy` does, around ReasonAlloc at one budget. {listed}"
        " Several ablations may share a folder: what they have in common is made once.",
    )
    parser.add_argument("name", type=_name, metavar="NAME", help=", ".join(ABLATIONS))
    study.add(parser, "ablations-out")
    cache = parser.add_argument_group("cache")
    cache.add_argument("--budget", type=options.positive, default=256, metavar="SLOTS", help="of a KV head (256)")
    options.add_interval(cache)
    options.add_keep_prompt(cache)
    cache.add_argument(
        "--alpha", type=options.from_0_to_1, metavar="X",
        help="weight of importance against redundancy, in all methods (theirs); a folder has one of them",
    )  # fmt: skip
    parser.set_defaults(run=run)


def _name(text: str) -> str:
    if text not in ABLATIONS:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(ABLATIONS)}, got {text!r}")
    return text


def run(args: argparse.Namespace) -> int:
    ablation, own = ABLATIONS[args.name], study.study_of(args)
    own.records.open(own.settings)
    cells = cells_of(ablation, Around(own.waves, args.budget, args.interval, args.keep_prompt, args.alpha))
    options.console(args).print(ablation.question)
    study.run_and_report(args, own, cells, ablation.name, ablation.question)
    return 0
