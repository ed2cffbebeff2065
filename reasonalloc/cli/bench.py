"""`reasonalloc bench`: the benchmarks of reasonalloc.bench."""

from __future__ import annotations

from typing import Any

from reasonalloc.bench import add_arguments, main


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("bench", help="measure speed, every result checked first")
    add_arguments(parser)
    parser.set_defaults(run=main)
