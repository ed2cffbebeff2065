"""`reasonalloc evaluate`: how good a compressed cache is."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from reasonalloc.cli import options, settings
from reasonalloc.files import Json
from reasonalloc.lab import plots
from reasonalloc.lab.evaluate import texts
from reasonalloc.lab.evaluate.ablations import ABLATIONS, Around, cells_of
from reasonalloc.lab.evaluate.cells import Cell, cell_name, once
from reasonalloc.lab.evaluate.fidelity import check_against, evaluate_fidelity
from reasonalloc.lab.evaluate.points import points_of
from reasonalloc.lab.evaluate.waves import GivenWave
from reasonalloc.lab.problems import math500
from reasonalloc.lab.tasks import items
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.provenance import provenance


def run(args: argparse.Namespace) -> int:
    cells = _cells(args)
    against = _against(args, cells)  # what cannot be is an error before anything is generated
    out = options.console(args)
    model, tokenizer, label = options.load_model(args, out)
    chosen = _texts(args, model, tokenizer, out)
    with options.bar(out) as progress:
        task = progress.add_task("teacher forcing", total=len(cells) * sum(len(x.solution) for x in chosen))
        result = evaluate_fidelity(
            model,
            chosen,
            cells,
            seed=args.seed,
            against=against,
            batch_size=args.batch_size,
            provenance=_provenance(args, label),
            progress=lambda steps: progress.advance(task, steps),
        )
    out.print(result.table())
    if result.differences:
        out.print(result.differences_table())
    if args.plot:
        plots.fidelity(result, args.plot)
    options.write_json(args.json, asdict(result))
    return 0


def _against(args: argparse.Namespace, cells: list[Cell]) -> str | None:
    """The method that others are compared with; by default R-KV, where there is something to compare."""
    try:
        check_against(cells, args.against or "rkv")
    except ValueError as error:
        if args.against is not None:
            raise ValueError(f"--{error}") from error
        return None
    return args.against or "rkv"


def _cells(args: argparse.Namespace) -> list[Cell]:
    return once(_named(args))


def _named(args: argparse.Namespace) -> list[Cell]:
    given = options.settings_of(args, settings.CHOSEN if args.ablation else settings.VARIED)
    if args.ablation is not None:
        return _of_ablation(args, given)
    if args.cells:
        raise ValueError("--cells are of --ablation")
    budgets = [] if args.ratios or args.max_bytes else args.budgets or [64, 128, 256]
    made = points_of(list(dict.fromkeys(args.methods)), budgets, args.ratios or [], given, args.max_bytes or [])
    return [Cell(cell_name(x), x) for x in made]


def _of_ablation(args: argparse.Namespace, given: dict[str, Any]) -> list[Cell]:
    if args.ablation not in ABLATIONS:
        raise ValueError(f"--ablation must be one of {', '.join(ABLATIONS)}, got {args.ablation!r}")
    if args.ratios or args.max_bytes:
        raise ValueError("--ablation takes --budgets, not --ratios or --max-bytes")
    waves = GivenWave(args.task or "math500", None)  # but for that of --profile none is measured
    made = [
        cell
        for budget in args.budgets or [64, 128, 256]
        for cell in cells_of(ABLATIONS[args.ablation], Around(waves, budget, given))
        if cell.config.method != "full"
    ]
    labels = [f"{x.config.method}{x.name.removeprefix(cell_name(x.config))}" for x in made]  # names without sizes
    for wanted in args.cells or ():
        if wanted not in labels:
            names = ", ".join(dict.fromkeys(labels))
            raise ValueError(f"--cells: the ablation {args.ablation!r} has no {wanted!r}; there are {names}")
    return [x for x, label in zip(made, labels, strict=True) if not args.cells or label in args.cells]


def _provenance(args: argparse.Namespace, label: str) -> Json:
    about = {"tokens": args.tokens, "interval": args.interval, "keep_prompt": args.keep_prompt, "dtype": args.dtype}
    if args.texts:
        source = f"solutions of {args.texts}"
    elif args.task:
        source = f"worked answers of {args.task}, {';'.join(args.settings or ['all settings'])}"
    elif args.documents:
        named = [f"{x} (sha256 {hashlib.sha256(Path(x).read_bytes()).hexdigest()[:12]})" for x in args.documents]
        source = f"pieces of {', '.join(named)}, {args.prompt_tokens} tokens before each"
    else:
        source = "MATH-500 with the model's own full-cache solutions"
        about["temperature"] = args.temperature
    return {**provenance(label, args.seed), "texts": source, **about}


def _texts(args: argparse.Namespace, model: Model, tokenizer: Tokenizer, out: Console) -> list[texts.Text]:
    if args.settings and not args.task:
        raise ValueError("--settings are of --task")
    if args.texts:
        return texts.read(args.texts, tokenizer, args.tokens, args.problems)
    if args.task:
        chosen = items(args.task, count=args.problems, seed=args.seed, settings=args.settings)
        return texts.worked(chosen, tokenizer, args.tokens)
    if args.documents:
        return texts.pieces(args.documents, tokenizer, args.prompt_tokens, args.tokens, args.problems)
    problems = math500(args.problems, args.seed)
    solutions = texts.generate(model, tokenizer, problems, args.tokens, args.temperature, args.seed)
    with options.bar(out) as progress:
        return list(_tracked(progress, solutions, len(problems)))


def _tracked(progress: Progress, items: Iterator[texts.Text], total: int) -> Iterator[texts.Text]:
    task = progress.add_task("reference solutions", total=total)
    for item in items:
        progress.advance(task)
        yield item
