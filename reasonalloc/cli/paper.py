"""`reasonalloc paper`: ReasonAlloc's tables, methods by budgets, the published figures beside ours."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from reasonalloc.cli import options, settings, study
from reasonalloc.cli.parsers.paper import TASKS
from reasonalloc.cli.plan import show
from reasonalloc.files import refuse_other, replace_text
from reasonalloc.lab.evaluate.records import pack
from reasonalloc.lab.evaluate.study_file import StudyFile
from reasonalloc.lab.evaluate.summary import Row, Summary
from reasonalloc.lab.models import REASONER, bare
from reasonalloc.methods import METHODS as TABLE
from reasonalloc.provenance import Place, in_words

PROMPT = {True: "is evicted last", False: "is evicted as any text", None: "is treated as each method has it"}

# arXiv 2606.11164, pass@1 in percent: (model, task, budget) -> method -> figure.
PUBLISHED = {
    ("DeepSeek-R1-Distill-Llama-8B", "math500", 128): {"reasonalloc": 61.4, "rkv": 51.8, "snapkv": 33.8},
    ("DeepSeek-R1-Distill-Llama-8B", "aime24", 256): {"reasonalloc": 20.0, "rkv": 10.4, "snapkv": 1.3},
}
TITLE = "# ReasonAlloc's tables"
PUBLISHED_SPEED = {"with routing": 218.8, "without routing": 217.4}  # tokens/s, same model, their machine


def plans(args: argparse.Namespace) -> list[StudyFile]:
    """The studies of this package that the options choose, one a table, with what they change of them."""
    chosen = ["ledger"] if args.model == REASONER else [x for x in TASKS if x in args.tasks]
    files = [StudyFile.load(f"paper-{task}-quick" if args.quick else f"paper-{task}") for task in chosen]
    given = {x: getattr(args, x) for x in ("budgets", "problems", "max_new_tokens", "samples", "batch_size", "seed")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.methods:
        names = [TABLE.own(x) for x in args.methods]
        changes["cells"] = {name: {"method": name} for name in names}
    if args.model == REASONER:
        changes.pop("samples", None)  # it answers greedily
    config = options.settings_of(args, settings.CHOSEN)
    return [
        replace(x, **changes, model=args.model, dtype=args.dtype or x.dtype, config={**x.config, **config})
        for x in files
    ]


def run(args: argparse.Namespace) -> int:
    """Makes what is missing of all tables and writes them; a table that cannot be made is an error at the start."""
    folder, out, parts = args.output or default_folder(args), options.console(args), []
    studies = [(plan, study.of_file(args, plan, folder / "raw" / plan.task)) for plan in plans(args)]
    wanted = [(plan, evaluation, plan.made()) for plan, evaluation in studies]
    if args.dry_run:
        return show(args, out, [(evaluation, cells) for _, evaluation, cells in wanted])
    refuse_other(folder / "README.md", TITLE)
    for _, evaluation in studies:
        evaluation.records.open(evaluation.settings)
    for plan, evaluation, cells in wanted:
        summary = study.measured(out, evaluation, cells, folder / plan.task, regrade=args.regrade)
        if summary is None:
            continue
        parts.append((plan, summary))
        pack(evaluation.records.by_key.values(), folder / f"{plan.task}.jsonl.gz")
        replace_text(folder / "README.md", report(parts, args.model))
    if args.shard:
        options.write_json(
            args.json, {"schema": 1, "shards": [study.shard_json(evaluation) for _, evaluation in studies]}
        )
        return 0
    options.write_json(args.json, {"schema": 1, "tables": {plan.task: summary.as_json() for plan, summary in parts}})
    return 0


def default_folder(args: argparse.Namespace) -> Path:
    """One for each model, in the working directory: results that are published are not written over."""
    return Path("paper-quick" if args.quick else f"paper-{bare(args.model)}")


def report(parts: Sequence[tuple[StudyFile, Summary]], model: str) -> str:
    """All tables as Markdown."""
    lines = [f"{TITLE}\n", f"Made by `{shlex.join(['reasonalloc', *sys.argv[1:]])}`.\n"]
    for plan, summary in parts:
        made = summary.provenance
        lines.append(f"## {plan.task}, {model.rpartition('/')[2]}\n")
        where = [in_words(x) for x in cast(list[Place], made.get("runs") or [made])]
        lines.append(f"{made['created']}: {'; '.join(dict.fromkeys(where))};")
        count = summary.rows[0].problems
        named = f" ({', '.join(plan.settings)})" if plan.settings else ""
        lines.append(f"{count} problems{named}, {made['samples']} sample(s) each, temperature {made['temperature']:g},")
        lines.append(f"at most {made['max_new_tokens']} tokens; the prompt {PROMPT[plan.config.get('keep_prompt')]}.")
        lines.append(f"Generations: `{plan.task}.jsonl.gz`.\n")
        lines += [f"> **Warning:** {x}\n" for x in summary.warnings]
        lines += [_grid(plan, summary, model), f"![accuracy over budget]({plan.task}.png)\n"]
        lines.append(f"All figures: [{plan.task}.md]({plan.task}.md).\n")
        lines.append(_routing(summary))
    return "\n".join(lines)


def _grid(plan: StudyFile, summary: Summary, model: str) -> str:
    """Accuracy and share of chains cut off, rows methods and columns budgets; then what the paper has of this model on
    this task."""
    same = (bare(model), plan.task)
    published = {key: value for key, value in PUBLISHED.items() if key[:2] == same}
    heads = [f"b = {x}" for x in plan.budgets] + [f"paper, b = {b}" for _, _, b in published]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    rows = {(x.method, x.budget): x for x in summary.rows}
    for method in dict.fromkeys(x.method for x in summary.rows):
        own = [rows.get((method, b), rows.get((method, None))) for b in plan.budgets]
        row = [f"{x.accuracy.text('.1%')}, {x.truncated:.0%} cut off" if x else "" for x in own]
        row += [f"{value[method]:.1f}%" if method in value else "" for value in published.values()]
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _routing(summary: Summary) -> str:
    """Tokens a second with and without routing, beside the paper's."""
    found: dict[str, Any] = {}
    by_cell: dict[str, Row] = {x.cell: x for x in summary.rows}
    for row in summary.rows:
        if row.method == "reasonalloc" and (without := by_cell.get(f"rkv {row.setting}")):
            found[row.setting] = f"{row.tokens_per_s:.1f} against {without.tokens_per_s:.1f}"
    if not found:
        return ""
    speeds = "; ".join(f"b = {k}: {v}" for k, v in found.items())
    paper = f"{PUBLISHED_SPEED['with routing']} against {PUBLISHED_SPEED['without routing']}"
    return f"Tokens/s with wave and routing against R-KV: {speeds} (paper, with and without routing: {paper}).\n"
