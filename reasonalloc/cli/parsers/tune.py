"""Options of `reasonalloc tune`."""

from __future__ import annotations

from reasonalloc.cli import options, settings
from reasonalloc.cli.parsers import study


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "tune",
        help="choose a model's layer budgets by its answers",
        description="Deals the wave's budgets to the layers in other orders and keeps the order that answers most: all"
        " orders answer a few problems, the better half of them twice as many, until two have answered all. The order"
        " that is kept is then measured beside the wave, R-KV and the full cache on other problems. The file"
        " DIR/order.json is a profile like the wave's.",
    )
    study.add(parser, "tune-out")
    search = parser.add_argument_group("search")
    search.add_argument("--orders", type=options.positive, default=20, metavar="N", help="the wave's among them (20)")
    search.add_argument(
        "--keep-below", type=options.not_negative, default=0.5, metavar="X",
        help="layers that get less than this share of the mean keep their budget (0.5)",
    )  # fmt: skip
    search.add_argument(
        "--test-seed", type=options.natural, metavar="SEED",
        help="of the problems on which the order is measured in the end (that of --seed, plus 1)",
    )  # fmt: skip
    cache = parser.add_argument_group("cache")
    cache.add_argument("--method", default="reasonalloc-wave", metavar="NAME", help="(reasonalloc-wave)")
    cache.add_argument("--budget", type=options.positive, default=256, metavar="SLOTS", help="of a KV head (256)")
    cache.add_argument(
        "--profile", metavar="NAME", help="the wave to begin with, or an order found before (default: the task's wave)"
    )
    options.add_interval(cache)
    options.add_keep_prompt(cache)
    options.add_alpha(cache)
    settings.add(cache, settings.VARIED)
    parser.set_defaults(run=options.late("tune"))
