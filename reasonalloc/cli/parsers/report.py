"""Options of `reasonalloc report`."""

from __future__ import annotations

from reasonalloc.cli import options


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "report",
        help="show traces in one page",
        description="Makes a page of traces, as `reasonalloc generate --trace FILE` or ReasonAllocCache.trace saves"
        " them: budgets of every head over time, the text coloured by how many heads still hold each token, how much"
        " heads keep, scores, and two traces against each other. The page needs no network.",
    )
    parser.add_argument("traces", nargs="+", metavar="TRACE", help="saved traces; the first two are compared")
    parser.add_argument(
        "-o", "--output", type=options.file_in_folder, default="report.html", metavar="FILE",
        help="the page (report.html)",
    )  # fmt: skip
    options.add_json(parser)
    parser.set_defaults(run=options.late("report"))
