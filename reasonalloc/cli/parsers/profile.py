"""Options of `reasonalloc profile`."""

from __future__ import annotations

from reasonalloc.cli import options


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "profile",
        help="measure the layer wave of a model",
        description="Generates a chain for each prompt with the full cache and measures how many tokens hold the share"
        " RHO of each layer's attention: the layer wave, which shares a budget out over the layers.",
    )
    options.add_model(parser)
    parser.add_argument(
        "--prompts", default="4", metavar="FILE|N", help="a file with one prompt a line, or problems of MATH-500 (4)"
    )
    parser.add_argument("--max-new-tokens", type=options.positive, default=256, metavar="N", help="of each chain (256)")
    parser.add_argument("--rho", type=options.share, default=0.93, help="share of the attention (0.93)")
    parser.add_argument(
        "-o", "--output", type=options.new_file, default="wave.json", metavar="FILE", help="the profile (wave.json)"
    )
    parser.add_argument("--plot", type=options.new_file, metavar="PNG", help="draw the wave")
    options.add_json(parser)
    parser.set_defaults(run=options.late("profile"))
