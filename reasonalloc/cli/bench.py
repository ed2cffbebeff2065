"""`reasonalloc bench`: the benchmarks of reasonalloc.lab.bench."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeVar

from reasonalloc.cli import options
from reasonalloc.cli.parsers.bench import RESULTS
from reasonalloc.files import refuse_other
from reasonalloc.lab.bench import kvpress_peer, rkv_repo
from reasonalloc.lab.bench.memory import PROMPT
from reasonalloc.lab.bench.report import TITLE
from reasonalloc.lab.bench.run import run as run_parts
from reasonalloc.lab.bench.settings import PARTS, Settings

T = TypeVar("T")


def _settings(args: argparse.Namespace) -> Settings:
    """The options, checked as far as that takes no time."""
    if args.rkv_repo:
        rkv_repo.load(args.rkv_repo)
    kvpress_peer.interpreter(args.kvpress_python)
    if args.memory_tokens is not None and args.memory_tokens <= PROMPT:
        raise ValueError(f"--memory-tokens must be above the prompt's {PROMPT}, got {args.memory_tokens}")
    output = Path(args.output) if args.output else None
    if output is None and not args.quick:
        output = Path(RESULTS)
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"--output must be a folder, {output} is none")
    if output is not None:
        refuse_other(output / "README.md", TITLE)

    def several(values: list[T] | None) -> tuple[T, ...] | None:
        return tuple(dict.fromkeys(values)) if values else None

    return Settings(
        parts=tuple(x for x in PARTS if not args.parts or x in args.parts),
        quick=args.quick,
        runs=args.runs,
        output=output,
        rkv_repo=args.rkv_repo,
        kvpress_python=args.kvpress_python,
        memory_limit=args.memory_limit,
        chains=several(args.chains),
        budgets=several(args.budgets),
        most_rows=args.most_rows,
        whole_chains=args.whole_chains,
        memory_tokens=args.memory_tokens,
        memory_methods=several(args.memory_methods),
    )


def run(args: argparse.Namespace) -> int:
    """0, or RuntimeError if a result is not that of its reference."""
    results = run_parts(_settings(args), options.console(args), options.wide_console(stderr=True))
    options.write_json(args.json, results)
    return 0
