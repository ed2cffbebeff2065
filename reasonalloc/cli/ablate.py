"""`reasonalloc ablate`: what one part or setting of the method is worth."""

from __future__ import annotations

import argparse

from reasonalloc.cli import options, study
from reasonalloc.lab.evaluate.ablations import ABLATIONS, Around, cells_of


def add(subparsers: options.Subparsers) -> None:
    listed = "\n".join(f"  {x.name:<10} {x.question}" for x in ABLATIONS.values())
    parser = subparsers.add_parser(
        "ablate",
        help="vary one thing and measure the answers",
        description="Measures accuracy as `evaluate accuracy` does, around ReasonAlloc at one budget. Several ablations"
        f" may\nshare a folder: what they have in common is made once.\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", type=_name, metavar="NAME", help=", ".join(ABLATIONS))
    study.add(parser, "ablations-out")
    cache = parser.add_argument_group("cache")
    cache.add_argument("--budget", type=options.positive, default=256, metavar="SLOTS", help="of a KV head (256)")
    options.add_interval(cache)
    options.add_keep_prompt(cache)
    options.add_alpha(cache, "; a folder has one")
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
