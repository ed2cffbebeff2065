"""`reasonalloc evaluate`: how good a compressed cache is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.progress import Progress

from reasonalloc.cli import accuracy, options, transfer
from reasonalloc.config import Config
from reasonalloc.files import Json
from reasonalloc.lab import plots
from reasonalloc.lab.evaluate import texts
from reasonalloc.lab.evaluate.fidelity import evaluate_fidelity, points_of
from reasonalloc.lab.problems import math500
from reasonalloc.methods import methods
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.provenance import provenance


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("evaluate", help="measure how good a compressed cache is")
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    fidelity = kinds.add_parser(
        "fidelity",
        help="distance from the full cache under teacher forcing",
        description="Feeds prompts and reference solutions token by token with the full cache and with each method at"
        " each budget, and compares the distributions of the next token: negative log-likelihood of the reference, KL"
        " divergence from the full cache, agreement of the likeliest token; bytes and slots beside them."
        " The reference solutions are the model's own, generated once with the full cache for problems of MATH-500,"
        " which has answers but no worked solutions, and kept in ~/.cache/reasonalloc/texts (so an interrupted run goes"
        " on where it stopped); --texts takes given ones.",
    )
    options.add_model(fidelity)
    fidelity.add_argument(
        "--methods", type=options.comma(str), default=["reasonalloc", "rkv", "snapkv", "streaming", "random"],
        metavar="A,B", help=f"of {', '.join(methods())} (reasonalloc,rkv,snapkv,streaming,random)",
    )  # fmt: skip
    size = fidelity.add_mutually_exclusive_group()
    size.add_argument(
        "--budgets", type=options.comma(options.positive), metavar="N,N", help="slots of a KV head (64,128,256)"
    )
    size.add_argument("--ratios", type=options.comma(options.share), metavar="X,X", help="shares of the full cache")
    size.add_argument(
        "--max-bytes", type=options.comma(str), metavar="SIZE,SIZE",
        help="bytes of the whole cache at its largest after the prompt, however often a method is cut",
    )  # fmt: skip
    options.add_interval(fidelity)
    options.add_profile(fidelity)
    fidelity.add_argument("--problems", type=options.positive, default=4, metavar="N", help="of MATH-500 or FILE (4)")
    fidelity.add_argument(
        "--tokens", type=options.positive, default=512, metavar="N", help="of a solution at most (512)"
    )
    fidelity.add_argument(
        "--seed", type=options.natural, default=0, help="of the choice of problems and the bootstrap (0)"
    )
    source = fidelity.add_mutually_exclusive_group()
    source.add_argument("--texts", metavar="FILE", help="JSON lines with 'problem' and 'solution': reference solutions")
    source.add_argument(
        "--temperature", type=options.not_negative, default=0.0, help="of the model's own solutions (0: greedy)"
    )
    fidelity.add_argument("--plot", metavar="PNG", help="draw the result over the budget")
    options.add_json(fidelity)
    fidelity.set_defaults(run=run)
    accuracy.add(kinds)
    transfer.add(kinds)


def run(args: argparse.Namespace) -> int:
    configs = _configs(args)
    out = options.console(args)
    model, tokenizer, label = options.load_model(args)
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
    base = Config(method="full", interval=args.interval, profile=options.profile_of(args))
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
