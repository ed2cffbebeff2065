"""Options of `reasonalloc paper`."""

from __future__ import annotations

import argparse
from pathlib import Path

from reasonalloc.cli import options, settings
from reasonalloc.cli.parsers import study

TASKS = ["math500", "aime24"]


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "paper",
        help="rebuild ReasonAlloc's tables",
        description="Measures the paper's methods at its budgets and writes a table for each task, as the studies say"
        " that `reasonalloc study show` lists. By default on the embedded reasoner and its task: an hour on two cores,"
        " minutes with --quick. A real checkpoint, as in --model"
        " deepseek-ai/DeepSeek-R1-Distill-Llama-8B --device-map auto, makes chains of up to 32,768 tokens and wants"
        " accelerators: see what it takes with --dry-run first. A folder holds the generations; a run that is killed"
        " goes on there.",
    )
    options.add_model(parser, reasoner=True, dtype=None)
    parser.add_argument("--quick", action="store_true", help="a few problems, in minutes")
    parser.add_argument("--methods", type=options.comma(str), metavar="A,B", help="(all of the paper's)")
    parser.add_argument("--budgets", type=options.comma(options.positive), metavar="N,N", help="(the paper's)")
    parser.add_argument("--problems", type=options.positive, metavar="N", help="(24 of ledger, all of a dataset)")
    parser.add_argument("--tasks", type=options.comma(_task), default=TASKS, metavar="A,B", help="of real checkpoints")
    parser.add_argument("--max-new-tokens", type=options.positive, metavar="N", help="of a chain (1600; real: 32768)")
    options.add_keep_prompt(parser, " (the default with ledger)")
    settings.add(parser, settings.CHOSEN)
    parser.add_argument("--samples", type=options.positive, metavar="K", help="of real checkpoints (8)")
    parser.add_argument("--batch-size", type=options.positive, metavar="N", help="(64)")
    parser.add_argument("--seed", type=options.natural, metavar="N", help="(0)")
    parser.add_argument("--regrade", action="store_true", help="grade the chains that are there again")
    study.add_ray(parser)
    study.add_shard(parser)
    study.add_dry_run(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="(paper-MODEL; paper-quick with --quick)")
    options.add_json(parser)
    parser.set_defaults(run=options.late("paper"))


def _task(text: str) -> str:
    if text not in TASKS:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(TASKS)}, got {text!r}")
    return text
