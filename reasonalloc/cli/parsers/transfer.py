"""Options of `reasonalloc evaluate transfer`."""

from __future__ import annotations

import argparse

from reasonalloc.cli import options
from reasonalloc.lab.evaluate.transfer_result import Measuring
from reasonalloc.lab.tasks import REGISTRY

_DEFAULT = [name for name, task in REGISTRY.items() if task.shipped]


def add(kinds: options.Subparsers) -> None:
    parser = kinds.add_parser(
        "transfer",
        help="waves of a model on several tasks and their distances",
        description="Measures the layer wave on prompts of each task (reasonalloc profile does it for MATH-500) and"
        " compares the waves, and the layers' budgets that follow from them, by Earth Mover's Distance: between tasks,"
        " and beside that between the prompts of one task, with a permutation test. Chains are kept in"
        " ~/.cache/reasonalloc/texts, so an interrupted run goes on where it stopped. A folder for results gets each"
        " task's wave as a profile (for --profile of other commands), transfer.json, transfer.md and transfer.png.",
    )
    options.add_model(parser)
    parser.add_argument(
        "--tasks", type=options.comma(_task), default=_DEFAULT, metavar="A,B",
        help=f"of {', '.join(REGISTRY)} (all but aime24)",
    )  # fmt: skip
    defaults = Measuring()
    parser.add_argument("--prompts", type=options.positive, default=defaults.prompts, metavar="N", help="a task (4)")
    parser.add_argument(
        "--max-new-tokens", type=options.positive, default=defaults.max_new_tokens, metavar="N", help="of a chain (256)"
    )
    parser.add_argument(
        "--last", type=options.positive, metavar="N", help="measure on the newest N tokens only, so that lengths agree"
    )
    parser.add_argument("--rho", type=options.share, default=defaults.rho, help="share of the attention (0.93)")
    parser.add_argument(
        "--budget", type=options.positive, default=defaults.budget, metavar="SLOTS", help="shared out over layers (128)"
    )
    parser.add_argument("--temperature", type=options.not_negative, default=0.0, help="of the chains (0: greedy)")
    parser.add_argument("--samples", type=options.positive, default=1, metavar="K", help="chains of each prompt (1)")
    parser.add_argument("--seed", type=options.natural, default=0, help="of prompts, chains and tests (0)")
    parser.add_argument("--output", type=options.new_folder, metavar="DIR", help="for waves, tables and picture")
    options.add_json(parser)
    parser.set_defaults(run=options.late("transfer"))


def _task(text: str) -> str:
    if text not in REGISTRY:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(REGISTRY)}, got {text!r}")
    return text
