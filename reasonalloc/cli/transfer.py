"""`reasonalloc evaluate transfer`: whether a wave of one task serves another."""

from __future__ import annotations

import argparse
from pathlib import Path

from reasonalloc.cli import options
from reasonalloc.files import replace_text
from reasonalloc.lab import plots
from reasonalloc.lab.evaluate.transfer import evaluate_transfer
from reasonalloc.lab.evaluate.transfer_result import Measuring
from reasonalloc.provenance import provenance


def run(args: argparse.Namespace) -> int:
    settings = Measuring(
        args.prompts, args.max_new_tokens, args.rho, temperature=args.temperature, samples=args.samples, seed=args.seed,
        budget=args.budget, last=args.last,
    )  # fmt: skip
    folder = Path(args.output) if args.output else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    out = options.console(args)
    model, tokenizer, label = options.load_model(args, out)
    with options.bar(out) as progress:
        total = len(set(args.tasks)) * args.prompts * args.samples
        task = progress.add_task("waves", total=total)
        result = evaluate_transfer(
            model, tokenizer, args.tasks, settings, provenance=provenance(label, args.seed),
            progress=lambda: progress.advance(task),
        )  # fmt: skip
    for table in result.rich_tables():
        out.print(table)
    for line in result.statements():
        out.print(line, highlight=False, soft_wrap=True)
    if folder is not None:
        result.save_profiles(folder)
        options.write_json(str(folder / "transfer.json"), result.as_json())
        replace_text(folder / "transfer.md", result.markdown())
        plots.transfer(result, folder / "transfer.png")
        out.print(f"waves, tables and picture are in {folder}", highlight=False)
    options.write_json(args.json, result.as_json())
    return 0
