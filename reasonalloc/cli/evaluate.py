"""`reasonalloc evaluate`: how good a compressed cache is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.progress import Progress

from reasonalloc.cli import options, settings
from reasonalloc.config import Config
from reasonalloc.files import Json
from reasonalloc.lab import plots
from reasonalloc.lab.evaluate import texts
from reasonalloc.lab.evaluate.fidelity import evaluate_fidelity, points_of
from reasonalloc.lab.problems import math500
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.provenance import provenance


def run(args: argparse.Namespace) -> int:
    configs = _configs(args)
    out = options.console(args)
    model, tokenizer, label = options.load_model(args, out)
    chosen = _texts(args, model, tokenizer, out)
    with options.bar(out) as progress:
        task = progress.add_task("teacher forcing", total=len(configs) * sum(len(x.solution) for x in chosen))
        result = evaluate_fidelity(
            model,
            chosen,
            configs,
            seed=args.seed,
            provenance=_provenance(args, label),
            progress=lambda steps: progress.advance(task, steps),
        )
    out.print(result.table())
    if args.plot:
        plots.fidelity(result, args.plot)
    options.write_json(args.json, asdict(result))
    return 0


def _configs(args: argparse.Namespace) -> list[Config]:
    base = Config(method="full", **options.settings_of(args, settings.VARIED))
    budgets = [] if args.ratios or args.max_bytes else args.budgets or [64, 128, 256]
    return points_of(list(dict.fromkeys(args.methods)), budgets, args.ratios or [], base, args.max_bytes or [])


def _provenance(args: argparse.Namespace, label: str) -> Json:
    source = f"solutions of {args.texts}" if args.texts else "MATH-500 with the model's own full-cache solutions"
    own = {"texts": source, "tokens": args.tokens, "interval": args.interval, "dtype": args.dtype}
    return {**provenance(label, args.seed), **own, **({} if args.texts else {"temperature": args.temperature})}


def _texts(args: argparse.Namespace, model: Model, tokenizer: Tokenizer, out: Console) -> list[texts.Text]:
    if args.texts:
        return texts.read(args.texts, tokenizer, args.tokens, args.problems)
    problems = math500(args.problems, args.seed)
    solutions = texts.generate(model, tokenizer, problems, args.tokens, args.temperature, args.seed)
    with options.bar(out) as progress:
        return list(_tracked(progress, solutions, len(problems)))


def _tracked(progress: Progress, items: Iterator[texts.Text], total: int) -> Iterator[texts.Text]:
    task = progress.add_task("reference solutions", total=total)
    for item in items:
        progress.advance(task)
        yield item
