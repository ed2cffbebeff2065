"""Options of `reasonalloc calibrate`."""

from __future__ import annotations

from reasonalloc.cli import options
from reasonalloc.methods import METHODS
from reasonalloc.policy.calibration import CHEAP, PARTS, SYSTEMS


def add(subparsers: options.Subparsers) -> None:
    here = [x for x in SYSTEMS if x in METHODS]
    others = [x for x in SYSTEMS if x not in METHODS]
    parser = subparsers.add_parser(
        "calibrate",
        help="measure a model's queries, keys and values",
        description="Runs plain texts through the model and keeps the statistics that systems need of its queries, keys"
        f" and values. Methods: {', '.join(here)}; systems that are no methods here: {', '.join(others)}; parts:"
        f" {', '.join(PARTS)}.",
    )
    options.add_model(parser)
    parser.add_argument(
        "--texts", nargs="+", default=["64"], metavar="FILE|N", help="text files, or problems of MATH-500 (64)"
    )
    parser.add_argument(
        "--for",
        dest="wanted",
        nargs="+",
        default=list(CHEAP),
        metavar="SYSTEM|PART",
        help=f"what is measured ({' '.join(CHEAP)})",
    )
    parser.add_argument("--length", type=options.positive, default=4096, metavar="N", help="tokens of a piece (4096)")
    parser.add_argument("--chunk", type=options.positive, default=512, metavar="N", help="tokens at a time (512)")
    parser.add_argument(
        "--slots", type=options.positive, default=128, metavar="N",
        help="of a head above prompt and window, for which its share is measured (128)",
    )  # fmt: skip
    parser.add_argument("--import", dest="published", metavar="FILE.pt", help="TriAttention's published statistics")
    parser.add_argument(
        "-o", "--output", type=options.new_file, default="calibration.safetensors", metavar="FILE",
        help="the file (calibration.safetensors)",
    )  # fmt: skip
    options.add_json(parser)
    parser.set_defaults(run=options.late("calibrate"))
