"""`reasonalloc report`: one self-contained page that shows traces."""

from __future__ import annotations

import argparse
from pathlib import Path

from reasonalloc.cli import options
from reasonalloc.files import replace_text
from reasonalloc.trace import Trace
from reasonalloc.trace.report import page, summary


def run(args: argparse.Namespace) -> int:
    traces = [Trace.load(path) for path in args.traces]
    names = _names(args.traces)
    html = page(traces, names)
    replace_text(args.output, html, folders=False)
    out = options.console(args)
    figures = [summary(trace, name) for trace, name in zip(traces, names, strict=True)]
    for x in figures:
        out.print(
            f"{x['name']}: {x['model']}, {x['method']}, {x['size']}; {x['tokens']:,} tokens, {x['cuts']} cuts,"
            f" {x['ratio']:.1%} of the slots kept",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    out.print(f"saved to {args.output} ({len(html.encode()) / 2**20:.2f} MiB)", highlight=False, markup=False)
    options.write_json(args.json, {"schema": 1, "traces": figures})
    return 0


def _names(paths: list[str]) -> list[str]:
    """File names without their ending; whole paths where two would be alike."""
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else paths
