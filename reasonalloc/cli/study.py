"""Options that `evaluate accuracy` and `ablate` share, and the study they become."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from reasonalloc.cli import options
from reasonalloc.hf.decode import Sampling
from reasonalloc.lab import models
from reasonalloc.lab.evaluate.accuracy import Cell
from reasonalloc.lab.evaluate.records import PACKED, pack
from reasonalloc.lab.evaluate.study import RaySettings, Study, write
from reasonalloc.lab.evaluate.summary import Summary
from reasonalloc.lab.evaluate.workers import Source
from reasonalloc.lab.tasks import GRID, TASKS, items


def add(parser: argparse.ArgumentParser, folder: str) -> None:
    """folder: where results go by default."""
    options.add_model(parser, reasoner=True)
    task = parser.add_argument_group("task")
    task.add_argument("--task", default="ledger", metavar="TASK", help=f"{', '.join(TASKS)} or FILE.jsonl (ledger)")
    size = task.add_mutually_exclusive_group()
    size.add_argument(
        "--problems", type=options.positive, metavar="N", help="of ledger: for each setting (8); of a dataset (all)"
    )
    size.add_argument("--fraction", type=options.share, metavar="X", help="of the problems of a dataset")
    task.add_argument(
        "--settings", type=_settings, metavar="A;B",
        help=f"of ledger: {', '.join(GRID)} or like questions=4,depth=3 (all that have a name)",
    )  # fmt: skip
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--samples", type=options.positive, default=1, metavar="K", help="of each problem (1)")
    sampling.add_argument("--temperature", type=options.not_negative, default=0.0, metavar="T", help="0: greedy (0)")
    sampling.add_argument("--top-p", type=options.share, default=1.0, metavar="P", help="(1)")
    sampling.add_argument("--max-new-tokens", type=options.positive, default=4096, metavar="N", help="(4096)")
    sampling.add_argument("--seed", type=options.natural, default=0, help="of problems, samples and intervals (0)")
    group = parser.add_argument_group("run")
    group.add_argument("--batch-size", type=options.positive, default=16, metavar="N", help="(16)")
    group.add_argument("--output", metavar="DIR", default=folder, help=f"for generations and results ({folder})")
    group.add_argument("--regrade", action="store_true", help="grade the chains that are there again, from their texts")
    group.add_argument("--pack", action="store_true", help="also write generations.jsonl.gz")
    add_ray(group)
    options.add_json(parser)


def add_ray(group: options.Group) -> None:
    """Options of a run that is spread over Ray."""
    group.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS", help="spread over Ray actors, each of --threads (1) threads"
    )
    group.add_argument("--workers", type=options.positive, metavar="N", help="Ray actors (as many as fit)")
    group.add_argument(
        "--gpus",
        type=options.not_negative,
        default=0.0,
        metavar="N",
        help="of each actor (0); its model lies on them",
    )


def source_of(args: argparse.Namespace) -> Source:
    """Of the model, for this process or for actors, which may have other devices."""
    if args.ray is None and args.device_map:
        models.check_device(args.device_map)
    if args.ray is not None and not args.gpus and args.device_map not in (None, "cpu"):
        raise ValueError(f"--device-map {args.device_map} with --ray needs --gpus, the number of each actor")
    threads = args.threads or (1 if args.ray is not None else None)
    return Source(args.model, args.dtype, threads, args.device_map or ("auto" if args.gpus else None))


def ray_of(args: argparse.Namespace) -> RaySettings | None:
    if args.ray is None and (args.workers or args.gpus):
        raise ValueError("--workers and --gpus are for --ray")
    return None if args.ray is None else RaySettings(args.ray or None, args.workers, args.gpus)


def _settings(text: str) -> list[str]:
    """Separated by ";", or by "," where all are names."""
    parts = text.split(";") if ";" in text or "=" in text else text.split(",")
    return [x.strip() for x in parts if x.strip()]


def study_of(args: argparse.Namespace) -> Study:
    """The study as the options of `add` say; ValueError for what does not fit."""
    asked = items(args.task, count=args.problems, fraction=args.fraction or 1.0, seed=args.seed, settings=args.settings)
    sampling = Sampling(args.temperature, args.top_p, args.max_new_tokens, args.seed)
    return Study(
        Path(args.output), source_of(args), args.task, asked, sampling, args.samples, args.batch_size, ray_of(args)
    )


def measured(
    out: Console, study: Study, cells: Sequence[Cell], stem: Path, question: str = "", regrade: bool = False
) -> Summary:
    """Makes what is missing under a progress bar, prints the table, and writes it as stem.json, .md and .png."""
    if regrade:
        study.regrade()
    with options.bar(out) as progress:
        task = progress.add_task(study.task, total=None)
        study.run(cells, lambda done, total: progress.update(task, completed=done, total=total))
    summary = study.summary(cells)
    out.print(summary.table())
    write(summary, stem, question)
    return summary


def run_and_report(
    args: argparse.Namespace, study: Study, cells: Sequence[Cell], name: str, question: str = ""
) -> None:
    """`measured` as the options of `add` say, written as `name` into the study's folder. question: of an ablation."""
    summary = measured(options.console(args), study, cells, study.folder / name, question, args.regrade)
    if args.pack:
        pack(study.records.by_key.values(), study.folder / PACKED)
    options.write_json(args.json, summary.as_json())
