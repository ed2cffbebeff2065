"""Options of `reasonalloc doctor`."""

from __future__ import annotations

from reasonalloc.cli import options


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("doctor", help="say what was found and what is supported")
    options.add_model(parser)
    options.add_json(parser)
    parser.set_defaults(run=options.late("doctor"))
