"""Options of `reasonalloc demo`."""

from __future__ import annotations

from reasonalloc.cli import options, settings
from reasonalloc.lab.models import REASONERS
from reasonalloc.methods import methods

METHODS = ["rkv", "reasonalloc"]
BUDGET = 320
PROBLEMS = {"ledger": 12, "search": 12, "math500": 8}  # rows of the batch
TOKENS = {"ledger": 576, "search": 768, "math500": 4096}  # of a chain at most
# Chains of about 500 tokens, which repeat themselves or leave dead branches behind.
SETTINGS = {"ledger": "questions=2,depth=3,distractors=3,filler=2", "search": "short"}


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="a batch of problems with the full cache and within a budget",
        description="Lets the model answer problems as one batch: with transformers' own cache, then with each method"
        " at one budget. Shows the chains as they run, then right answers, bytes and tokens per second of each, and"
        " writes a report page of the first chain and two pictures. An embedded reasoner answers problems of its own"
        " task, greedily; any other model answers MATH-500, sampled at temperature 0.6 and top-p 0.95.",
    )
    options.add_model(parser, reasoner=True)
    parser.add_argument(
        "--task",
        choices=list(PROBLEMS),
        help=f"({', '.join(f'{task} for {name}' for task, name in REASONERS.items())}, else math500)",
    )
    parser.add_argument(
        "--problems", type=options.positive, metavar="N",
        help=f"of the batch ({', '.join(f'{n} of {task}' for task, n in PROBLEMS.items())})",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=options.positive, metavar="N",
        help=f"where a chain is cut off ({', '.join(f'{task} {n:,}' for task, n in TOKENS.items())})",
    )  # fmt: skip
    parser.add_argument(
        "--setting", metavar="NAME",
        help=f"of the problems ({', '.join(f'{task} {setting}' for task, setting in SETTINGS.items())})",
    )  # fmt: skip
    parser.add_argument(
        "--methods", type=options.comma(str), default=METHODS, metavar="A,B",
        help=f"beside the full cache ({','.join(METHODS)}), of {', '.join(x for x in methods() if x != 'full')}",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=options.positive, default=BUDGET, metavar="SLOTS", help=f"of a KV head ({BUDGET})"
    )
    options.add_interval(parser)
    options.add_keep_prompt(parser, " (the default here)")
    options.add_profile(parser)
    settings.add(parser, ("method", "budget", "interval", "keep_prompt", "profile"))
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token, of MATH-500 too")
    parser.add_argument("--seed", type=options.natural, default=0, help="of problems and sampling (0)")
    parser.add_argument(
        "--out", type=options.new_folder, default="demo-out", metavar="DIR", help="for page and pictures (demo-out)"
    )
    options.add_json(parser)
    parser.set_defaults(run=options.late("demo"))
