"""Rebuilds ReasonAlloc's tables: methods by budgets, the published figures beside ours. `make paper`.

By default on the embedded reasoner and its task (an hour on two cores; --quick: minutes); on a real checkpoint by
    python benchmarks/paper.py --model deepseek-ai/DeepSeek-R1-Distill-Llama-8B --samples 8
A folder holds the generations; a run that is killed goes on there. At the end they are packed beside the tables.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from reasonalloc.cli import options
from reasonalloc.config import Config
from reasonalloc.evaluate.accuracy import Cell, cells
from reasonalloc.evaluate.generation import Sampling
from reasonalloc.evaluate.records import pack
from reasonalloc.evaluate.study import RaySettings, Study, write
from reasonalloc.evaluate.summary import Row, Summary
from reasonalloc.evaluate.workers import Source
from reasonalloc.models import REASONER
from reasonalloc.tasks import items

RESULTS = Path("benchmarks/results/paper")
METHODS = ["full", "reasonalloc", "rkv", "pyramid-rkv", "snapkv", "streaming", "random"]

# arXiv 2606.11164, pass@1 in percent: (model, task, budget) -> method -> figure.
PUBLISHED = {
    ("DeepSeek-R1-Distill-Llama-8B", "math500", 128): {"reasonalloc": 61.4, "rkv": 51.8, "snapkv": 33.8},
    ("DeepSeek-R1-Distill-Llama-8B", "aime24", 256): {"reasonalloc": 20.0, "rkv": 10.4, "snapkv": 1.3},
}
PUBLISHED_SPEED = {"with routing": 218.8, "without routing": 217.4}  # tokens/s, same model, their machine


@dataclass(frozen=True)
class Plan:
    """One table: a task, its budgets and how much of it is run. problems: of ledger for each setting; None: all."""

    task: str
    budgets: list[int]
    problems: int | None
    sampling: Sampling
    samples: int = 1
    settings: tuple[str, ...] | None = None
    keep_prompt: bool | None = None


def plans(args: argparse.Namespace) -> list[Plan]:
    if args.model == REASONER:
        budgets = args.budgets or ([256] if args.quick else [192, 256, 384, 512])
        greedy = Sampling(max_new_tokens=1200 if args.quick else 2048, seed=args.seed)
        settings = ("plain",) if args.quick else ("restated",)
        return [
            Plan("ledger", budgets, args.problems or (4 if args.quick else 16), greedy, 1, settings, keep)
            for keep in ((None,) if args.quick else (None, True))
        ]
    # As DeepSeek's model cards and R-KV's paper: temperature 0.6, top-p 0.95, chains of up to 32,768 tokens.
    sampling = Sampling(0.6, 0.95, 2048 if args.quick else 32_768, args.seed)
    share, k = args.problems, args.samples
    return [
        Plan("math500", args.budgets or [128, 256, 512, 1024], share or (8 if args.quick else None), sampling, k),
        Plan("aime24", args.budgets or [256, 512, 1024, 2048], share or (2 if args.quick else None), sampling, k),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_model(parser)
    parser.set_defaults(model=REASONER, dtype="bfloat16")
    parser.add_argument("--quick", action="store_true", help="a few problems, in minutes")
    parser.add_argument("--methods", type=options.comma(str), default=METHODS, metavar="A,B")
    parser.add_argument("--budgets", type=options.comma(options.positive), metavar="N,N")
    parser.add_argument("--problems", type=options.positive, metavar="N")
    parser.add_argument("--samples", type=options.positive, default=8, metavar="K", help="of real checkpoints (8)")
    parser.add_argument("--batch-size", type=options.positive, default=64, metavar="N")
    parser.add_argument("--seed", type=options.natural, default=0)
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS")
    parser.add_argument("--output", type=Path, help=f"folder ({RESULTS}; with --quick paper-quick)")
    args = parser.parse_args(argv)
    folder = args.output or (Path("paper-quick") if args.quick else RESULTS)
    out, parts = Console(), []
    for plan in plans(args):
        study, wanted = prepare(args, plan, folder)
        with options.bar(out) as progress:
            task = progress.add_task(plan.task, total=None)
            study.run(wanted, lambda done, total, task=task: progress.update(task, completed=done, total=total))
        summary = study.summary(wanted)
        out.print(summary.table())
        parts.append((plan, summary))
        write(summary, folder / name_of(plan))
        pack(study.records.known.values(), folder / f"{name_of(plan)}.jsonl.gz")
        (folder / "README.md").write_text(report(parts, args.model), encoding="utf-8")
    return 0


def name_of(plan: Plan) -> str:
    return plan.task + ("-prompt-kept" if plan.keep_prompt else "")


def prepare(args: argparse.Namespace, plan: Plan, folder: Path) -> tuple[Study, list[Cell]]:
    asked = items(plan.task, count=plan.problems, seed=args.seed, settings=plan.settings)
    threads = args.threads or (1 if args.ray is not None else None)
    ray = None if args.ray is None else RaySettings(args.ray or None)
    study = Study(
        folder / "raw" / name_of(plan), Source(args.model, args.dtype, threads), plan.task, asked, plan.sampling,
        plan.samples, args.batch_size, ray,
    )  # fmt: skip
    study.records.open(study.settings)
    base = Config(method="full", keep_prompt=plan.keep_prompt)
    return study, study.with_wave(cells(args.methods, plan.budgets, [], base))


def report(parts: Sequence[tuple[Plan, Summary]], model: str) -> str:
    """All tables as Markdown."""
    lines = ["# ReasonAlloc's tables\n", f"Made by `{shlex.join(['python', *sys.argv])}`.\n"]
    for plan, summary in parts:
        made = summary.provenance
        machine, versions = made["machine"], made["versions"]
        prompt = ", the prompt evicted last" if plan.keep_prompt else ""
        lines.append(f"## {plan.task}, {model.rpartition('/')[2]}{prompt}\n")
        where = f"{machine['processor']}, {machine['cpus']} CPUs, torch {versions['torch']}"
        lines.append(f"{made['created']}: {where}, transformers {versions['transformers']};")
        lines.append(f"{made['samples']} sample(s) a problem, temperature {made['temperature']:g}, at most")
        lines.append(f"{made['max_new_tokens']} tokens. Generations: `{name_of(plan)}.jsonl.gz`.\n")
        lines += [f"> **Warning:** {x}\n" for x in summary.warnings]
        lines += [_grid(plan, summary), f"![accuracy over budget]({name_of(plan)}.png)\n"]
        lines.append(f"All figures: [{name_of(plan)}.md]({name_of(plan)}.md).\n")
        lines.append(_routing(summary))
    return "\n".join(lines)


def _grid(plan: Plan, summary: Summary) -> str:
    """Accuracy, rows methods and columns budgets; then the published figures that exist for these budgets."""
    published = {key: value for key, value in PUBLISHED.items() if plan.task in (key[1], "ledger")}
    heads = [f"b = {x}" for x in plan.budgets]
    heads += [f"paper: {model.removeprefix('DeepSeek-')}, {task}, b = {b}" for model, task, b in published]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    rows = {(x.method, x.budget): x for x in summary.rows}
    for method in dict.fromkeys(x.method for x in summary.rows):
        own = [rows.get((method, b), rows.get((method, None))) for b in plan.budgets]
        told = [x.accuracy.text(".1%") if x else "" for x in own]
        told += [f"{value[method]:.1f}%" if method in value else "" for value in published.values()]
        lines.append(f"| {method} | " + " | ".join(told) + " |")
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
    told = "; ".join(f"b = {k}: {v}" for k, v in found.items())
    paper = f"{PUBLISHED_SPEED['with routing']} against {PUBLISHED_SPEED['without routing']}"
    return f"Tokens/s with wave and routing against R-KV: {told} (paper, with and without routing: {paper}).\n"


if __name__ == "__main__":
    sys.exit(main())
