"""Options of `reasonalloc ablate`."""

from __future__ import annotations

import argparse

from reasonalloc.cli import options, settings
from reasonalloc.cli.parsers import study
from reasonalloc.lab.evaluate.ablations import ABLATIONS


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "ablate",
        help="vary one thing and measure the answers",
        description="Measures accuracy as `evaluate accuracy` does, around ReasonAlloc at one budget. Several ablations"
        " may share a folder: what they have in common is made once. `--list` says what each of them asks.",
    )
    parser.add_argument("name", nargs="?", type=_name, metavar="NAME", help=", ".join(ABLATIONS))
    parser.add_argument("--list", action="store_true", help="the ablations and their questions, and nothing else")
    study.add(parser, "ablations-out")
    cache = parser.add_argument_group("cache")
    cache.add_argument("--budget", type=options.positive, default=256, metavar="SLOTS", help="of a KV head (256)")
    options.add_interval(cache)
    options.add_keep_prompt(cache)
    options.add_alpha(cache, "; a folder has one")
    settings.add(cache, settings.CHOSEN)
    parser.set_defaults(run=options.late("ablate"))


def _name(text: str) -> str:
    if text not in ABLATIONS:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(ABLATIONS)}, got {text!r}")
    return text
