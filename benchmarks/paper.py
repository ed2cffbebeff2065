"""Rebuilds ReasonAlloc's tables: methods by budgets, the published figures beside ours. `make paper`.

By default on the embedded reasoner and its task (an hour on two cores; --quick: minutes); on a real checkpoint, whose
chains of up to 32,768 tokens want accelerators, by
    python benchmarks/paper.py --model deepseek-ai/DeepSeek-R1-Distill-Llama-8B --samples 8 --device-map auto
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

from reasonalloc.cli import options, study
from reasonalloc.config import Config
from reasonalloc.files import replace_text
from reasonalloc.hf.decode import Sampling
from reasonalloc.lab.evaluate.accuracy import cells
from reasonalloc.lab.evaluate.records import pack
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.evaluate.summary import Row, Summary
from reasonalloc.lab.models import REASONER
from reasonalloc.lab.tasks import items
from reasonalloc.provenance import in_words

RESULTS = Path("benchmarks/results/paper")
METHODS = ["full", "reasonalloc", "reasonalloc-wave", "rkv", "pyramid-rkv", "snapkv", "streaming", "random"]
QUICK = ["full", "reasonalloc", "rkv", "random"]
TASKS = ["math500", "aime24"]
PROMPT = {True: "is evicted last", False: "is evicted as any text", None: "is treated as each method has it"}

# arXiv 2606.11164, pass@1 in percent: (model, task, budget) -> method -> figure.
PUBLISHED = {
    ("DeepSeek-R1-Distill-Llama-8B", "math500", 128): {"reasonalloc": 61.4, "rkv": 51.8, "snapkv": 33.8},
    ("DeepSeek-R1-Distill-Llama-8B", "aime24", 256): {"reasonalloc": 20.0, "rkv": 10.4, "snapkv": 1.3},
}
PUBLISHED_SPEED = {"with routing": 218.8, "without routing": 217.4}  # tokens/s, same model, their machine


@dataclass(frozen=True)
class Plan:
    """One table: a task, its budgets and how much of it is run. problems: of ledger for each setting; None: all.
    keep_prompt: of every method; None: each method's own."""

    task: str
    budgets: list[int]
    problems: int | None
    sampling: Sampling
    samples: int = 1
    settings: tuple[str, ...] | None = None
    keep_prompt: bool | None = None


def plans(args: argparse.Namespace) -> list[Plan]:
    if args.model == REASONER:
        settings = ("plain",) if args.quick else ("doubting",)
        sampling = Sampling(max_new_tokens=args.max_new_tokens or (480 if args.quick else 1600), seed=args.seed)
        budgets = args.budgets or ([256] if args.quick else [384, 512])
        # Questions ask for facts that nothing has looked at before: without the prompt every method only guesses.
        keep = True if args.keep_prompt is None else args.keep_prompt
        return [Plan("ledger", budgets, args.problems or (8 if args.quick else 24), sampling, 1, settings, keep)]
    # As DeepSeek's model cards and R-KV's paper: temperature 0.6, top-p 0.95, chains of up to 32,768 tokens.
    longest = args.max_new_tokens or (2048 if args.quick else 32_768)
    sampling = Sampling(0.6, 0.95, longest, args.seed)
    made = []
    for task, budgets, few in (("math500", [128, 256, 512, 1024], 8), ("aime24", [256, 512, 1024, 2048], 2)):
        if task in args.tasks:
            count = args.problems or (few if args.quick else None)
            made.append(Plan(task, args.budgets or budgets, count, sampling, args.samples, None, args.keep_prompt))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_model(parser, reasoner=True, dtype="bfloat16")
    parser.add_argument("--quick", action="store_true", help="a few problems, in minutes")
    parser.add_argument("--methods", type=options.comma(str), metavar="A,B", help="(all of the paper's)")
    parser.add_argument("--budgets", type=options.comma(options.positive), metavar="N,N")
    parser.add_argument("--problems", type=options.positive, metavar="N")
    parser.add_argument("--tasks", type=options.comma(_task), default=TASKS, metavar="A,B", help="of real checkpoints")
    parser.add_argument("--max-new-tokens", type=options.positive, metavar="N", help="of a chain (1600; real: 32768)")
    options.add_keep_prompt(parser, " (the default with ledger)")
    parser.add_argument("--samples", type=options.positive, default=8, metavar="K", help="of real checkpoints (8)")
    parser.add_argument("--batch-size", type=options.positive, default=64, metavar="N")
    parser.add_argument("--seed", type=options.natural, default=0)
    parser.add_argument("--regrade", action="store_true", help="grade the chains that are there again")
    study.add_ray(parser)
    parser.add_argument(
        "--output", type=Path, help=f"folder ({RESULTS}; other models: paper-NAME; --quick: paper-quick)"
    )
    args = parser.parse_args(argv)
    folder = args.output or Path("paper-quick" if args.quick else RESULTS if args.model == REASONER else _name(args))
    try:
        run(args, folder)
    except (ValueError, ModuleNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0


def run(args: argparse.Namespace, folder: Path) -> None:
    """Makes what is missing of all tables and writes them; a table that cannot be made is an error at the start."""
    out, parts = options.wide_console(), []
    for plan, own in [(x, study_of(args, x, folder)) for x in plans(args)]:
        if args.quick:
            own.waves.tokens = 128
        methods = args.methods or (QUICK if args.quick else METHODS)
        wanted = own.with_wave(cells(methods, plan.budgets, [], Config(method="full", keep_prompt=plan.keep_prompt)))
        parts.append((plan, study.measured(out, own, wanted, folder / plan.task, regrade=args.regrade)))
        pack(own.records.by_key.values(), folder / f"{plan.task}.jsonl.gz")
        replace_text(folder / "README.md", report(parts, args.model))


def _name(args: argparse.Namespace) -> str:
    """Of the folder for another model: what is published here is not written over."""
    return "paper-" + args.model.rstrip("/").rpartition("/")[2]


def _task(text: str) -> str:
    if text not in TASKS:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(TASKS)}, got {text!r}")
    return text


def study_of(args: argparse.Namespace, plan: Plan, folder: Path) -> Study:
    asked = items(plan.task, count=plan.problems, seed=args.seed, settings=plan.settings)
    found = Study(
        folder / "raw" / plan.task, study.source_of(args), plan.task, asked, plan.sampling, plan.samples,
        args.batch_size, study.ray_of(args),
    )  # fmt: skip
    found.records.open(found.settings)
    return found


def report(parts: Sequence[tuple[Plan, Summary]], model: str) -> str:
    """All tables as Markdown."""
    lines = ["# ReasonAlloc's tables\n", f"Made by `{shlex.join(['python', *sys.argv])}`.\n"]
    for plan, summary in parts:
        made = summary.provenance
        lines.append(f"## {plan.task}, {model.rpartition('/')[2]}\n")
        where = [in_words(x) for x in made.get("runs") or [made]]
        lines.append(f"{made['created']}: {'; '.join(dict.fromkeys(where))};")
        count = summary.rows[0].problems
        settings = f" ({', '.join(plan.settings)})" if plan.settings else ""
        lines.append(
            f"{count} problems{settings}, {made['samples']} sample(s) each, temperature {made['temperature']:g},"
        )
        lines.append(f"at most {made['max_new_tokens']} tokens; the prompt {PROMPT[plan.keep_prompt]}.")
        lines.append(f"Generations: `{plan.task}.jsonl.gz`.\n")
        lines += [f"> **Warning:** {x}\n" for x in summary.warnings]
        lines += [_grid(plan, summary), f"![accuracy over budget]({plan.task}.png)\n"]
        lines.append(f"All figures: [{plan.task}.md]({plan.task}.md).\n")
        lines.append(_routing(summary))
    return "\n".join(lines)


def _grid(plan: Plan, summary: Summary) -> str:
    """Accuracy and share of chains cut off, rows methods and columns budgets; then what is published of the task."""
    published = {key: value for key, value in PUBLISHED.items() if plan.task == key[1]}  # others say nothing of it
    heads = [f"b = {x}" for x in plan.budgets]
    heads += [f"paper: {model.removeprefix('DeepSeek-')}, {task}, b = {b}" for model, task, b in published]
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


if __name__ == "__main__":
    sys.exit(main())
