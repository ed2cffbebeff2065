"""Options of `reasonalloc demo`."""

from __future__ import annotations

from reasonalloc.cli import options, settings
from reasonalloc.methods import methods


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="the main job on a real model: full cache against a budget",
        description="Measures the layer wave, then lets the model work on a problem of MATH-500 with the full cache and"
        " with a budget, sampled at temperature 0.6 and top-p 0.95 with one seed. Both go on to the same number of"
        " tokens: the end-of-text token is ruled out. At last both read the full cache's text, and how often they rank"
        " the same token first is counted.",
    )
    options.add_model(parser)
    parser.add_argument("--problem", default="0", metavar="ID|N", help="of MATH-500 (0, the first)")
    parser.add_argument("--tokens", type=options.positive, default=1024, metavar="N", help="to generate (1024)")
    parser.add_argument("--budget", type=options.positive, default=128, metavar="SLOTS", help="of a KV head (128)")
    allowed = [x for x in methods() if x != "full"]
    options.add_method(parser, allowed)
    options.add_interval(parser)
    settings.add(parser, ("method", "budget", "interval", "profile"))
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token (a small model repeats itself)")
    parser.add_argument("--seed", type=options.natural, default=0, help="of the sampling (0)")
    parser.add_argument("--forced", type=options.positive, default=256, metavar="N", help="tokens to compare on (256)")
    parser.add_argument("--out", default="demo-out", metavar="DIR", help="for the pictures (demo-out)")
    options.add_json(parser)
    parser.set_defaults(run=options.late("demo"))
