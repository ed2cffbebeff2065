"""Options of `reasonalloc evaluate accuracy`."""

from __future__ import annotations

from reasonalloc.cli import options, settings
from reasonalloc.cli.parsers import study
from reasonalloc.methods import methods

METHODS = ["full", "reasonalloc", "reasonalloc-wave", "rkv", "snapkv", "streaming", "random"]
BUDGETS = [256, 512]


def add(kinds: options.Subparsers) -> None:
    parser = kinds.add_parser(
        "accuracy",
        help="answers of a model that reasons in long chains",
        description="Lets the model answer the problems of a task with each method at each budget and grades the boxed"
        " answers (math-verify). A folder holds every generation as a JSON line; a run that is killed goes on there"
        " when started again, and more methods, budgets or problems can be added to it.",
    )
    study.add(parser, "accuracy-out")
    cache = parser.add_argument_group("cache")
    cache.add_argument(
        "--methods", type=options.comma(str), default=METHODS, metavar="A,B",
        help=f"of {', '.join(methods())} ({','.join(METHODS)})",
    )  # fmt: skip
    budget = cache.add_mutually_exclusive_group()
    budget.add_argument(
        "--budgets", type=options.comma(options.positive), metavar="N,N",
        help=f"slots of a KV head ({','.join(map(str, BUDGETS))})",
    )  # fmt: skip
    budget.add_argument("--ratios", type=options.comma(options.share), metavar="X,X", help="shares of the full cache")
    equal = parser.add_argument_group("equal bytes")
    equal.add_argument(
        "--equal-bytes", metavar="METHOD",
        help="give every other method the budget at which its chains take as many bytes, on the average over time, as"
        " METHOD's at each of --budgets or --ratios; or a size of a chain like 12MB",
    )  # fmt: skip
    equal.add_argument(
        "--pilot", type=options.positive, default=2, metavar="N",
        help="problems, drawn by another seed, on which the budgets are found; of ledger: for each setting (2)",
    )  # fmt: skip
    equal.add_argument("--tolerance", type=options.share, default=0.02, metavar="X", help="of the bytes (0.02)")
    options.add_interval(cache)
    cache.add_argument(
        "--profile", metavar="FILE",
        help="layer wave (default: measured on four problems of the task, of ledger other than those judged)",
    )  # fmt: skip
    options.add_keep_prompt(cache)
    settings.add(cache, settings.VARIED)
    parser.set_defaults(run=options.late("accuracy"))
