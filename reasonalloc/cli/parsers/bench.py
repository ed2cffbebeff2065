"""Options of `reasonalloc bench`."""

from __future__ import annotations

import argparse

from reasonalloc.cli import options
from reasonalloc.config import parse_bytes
from reasonalloc.lab.bench.settings import KVPRESS_PYTHON, MEMORY_LIMIT, MEMORY_METHODS, MOST_ROWS, PARTS

RESULTS = "bench-out"


def _part(text: str) -> str:
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(PARTS)}, got {text!r}")
    return text


def _method(text: str) -> str:
    if text not in MEMORY_METHODS:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(MEMORY_METHODS)}, got {text!r}")
    return text


def _size(text: str) -> int:
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).replace("max_bytes ", "")) from None
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text!r}")
    return size


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure speed and memory, every result checked first",
        description="Checks every result against its reference, then times both sides in turn. kernels: one layer on"
        " one core; throughput: a whole model on all cores; memory: what the process holds over a chain; kvpress: it"
        " and ours in one setting. With a folder"
        " for results each part writes its JSON file there, and README.md has the tables.",
    )
    parser.add_argument("parts", nargs="*", type=_part, metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few minutes; saved with --output only")
    parser.add_argument("--runs", type=options.positive, metavar="N", help="timed rounds of each case")
    parser.add_argument(
        "--output", type=options.new_folder, metavar="DIR", help=f"for the results ({RESULTS}; none with --quick)"
    )
    options.add_json(parser)
    peers = parser.add_argument_group("peers")
    peers.add_argument("--rkv-repo", metavar="PATH", help="clone of Zefan-Cai/R-KV, whose code is then timed too")
    default_python = f"(default {KVPRESS_PYTHON} if present)"
    peers.add_argument("--kvpress-python", metavar="PATH", help=f"interpreter that has kvpress {default_python}")
    group = parser.add_argument_group("throughput and memory")
    group.add_argument("--memory-limit", type=_size, metavar="SIZE", help=f"of each cache ({MEMORY_LIMIT / 1e9:g}GB)")
    whole = options.comma(options.positive)
    group.add_argument("--chains", type=whole, metavar="N,...", help="lengths of chains (1024,4096,8192)")
    group.add_argument("--budgets", type=whole, metavar="N,...", help="slots a head at equal memory (128,256,512)")
    group.add_argument("--most-rows", type=options.positive, metavar="N", help=f"in a batch ({MOST_ROWS})")
    group.add_argument("--whole-chains", action="store_true", help="decode every token of every chain: hours")
    group.add_argument("--memory-tokens", type=options.positive, metavar="N", help="of the chain in `memory` (4096)")
    group.add_argument(
        "--memory-methods",
        type=options.comma(_method),
        metavar="NAME,...",
        help=f"among {', '.join(MEMORY_METHODS)} (default: all but full and reasonalloc-512)",
    )
    parser.set_defaults(run=options.late("bench"))
