"""`reasonalloc bench`: check, time, print a table, save every sample."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reasonalloc.bench import kernels
from reasonalloc.bench.timing import pin_to_one_core
from reasonalloc.provenance import provenance

SCHEMA = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="fewer sizes and runs: about half a minute")
    parser.add_argument("--runs", type=int, default=None, help="timed runs of each side (default 15, quick 5)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="save every sample (default benchmarks/results/kernels.json if that folder exists)",
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="one core, median of paired runs; ratio above 1: ours is faster")
    for name in ("kernel", "case", "dtype", "batch", "n", "ours ms", "peer ms", "ratio", "GB/s", "peer"):
        table.add_column(name, justify="left" if name in ("kernel", "case", "dtype", "peer") else "right")
    for row in rows:
        rate = f"{row['bytes'] / row['ours_s'] / 1e9:.1f}" if "bytes" in row else ""
        table.add_row(
            row["kernel"],
            row["case"],
            row["dtype"],
            str(row["batch"]),
            str(row["n"]),
            f"{row['ours_s'] * 1e3:.3f}",
            f"{row['theirs_s'] * 1e3:.3f}",
            f"{row['ratio']:.1f}x",
            rate,
            row["peer"],
        )
    return table


def main(args: argparse.Namespace) -> int:
    """Runs the kernel benchmarks; 0, or RuntimeError if a result is not that of its reference."""
    runs = args.runs if args.runs is not None else 5 if args.quick else 15
    if runs < 1:
        raise ValueError(f"--runs must be at least 1, got {runs}")
    pin_to_one_core()
    console = Console(file=sys.stderr)
    rows: list[dict[str, Any]] = []
    score_sizes = [384, 1152] if args.quick else [384, 1152, 2176, 4224]
    attention_sizes = [256, 2048] if args.quick else [256, 1024, 4096]
    with console.status("checking and timing"):
        for row in kernels.scores(score_sizes, runs):
            console.print(f"{row['kernel']} {row['case']} n={row['n']}: {row['ratio']:.1f}x")
            rows.append(row)
        for row in kernels.attention(attention_sizes, [1] if args.quick else [1, 8], runs):
            console.print(f"{row['kernel']} {row['dtype']} batch={row['batch']} n={row['n']}: {row['ratio']:.1f}x")
            rows.append(row)
    result = {"schema": SCHEMA, "runs": runs, "results": rows, "provenance": provenance()}
    default = Path("benchmarks/results")
    path = args.json or (str(default / "kernels.json") if default.is_dir() else None)
    if path == "-":
        print(json.dumps(result, indent=1))
        return 0
    Console(width=None if sys.stdout.isatty() else 120).print(_table(rows))
    if path:
        Path(path).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        console.print(f"samples saved to {path}")
    return 0
