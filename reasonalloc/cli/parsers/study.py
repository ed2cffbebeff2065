"""Options of `evaluate accuracy`."""

from __future__ import annotations

import argparse

from reasonalloc.cli import options
from reasonalloc.lab.evaluate.shard import Shard
from reasonalloc.lab.tasks import GRID, TASKS
from reasonalloc.lab.tasks.search import GRID as SIZES

SETTINGS = (
    f"of ledger: {', '.join(GRID)} or like questions=4,depth=3; of search: {', '.join(SIZES)} or like"
    ' numbers=9,lines=40-80 (all that have a name). Several of the latter in quotes: "X;Y"'
)


def add(parser: argparse.ArgumentParser, folder: str) -> None:
    """folder: where results go by default."""
    options.add_model(parser, reasoner=True, of_task=True)
    task = parser.add_argument_group("task")
    task.add_argument("--task", default="ledger", metavar="TASK", help=f"{', '.join(TASKS)} or FILE.jsonl (ledger)")
    size = task.add_mutually_exclusive_group()
    size.add_argument(
        "--problems",
        type=options.positive,
        metavar="N",
        help="of ledger and search: for each setting (8); of a dataset (all)",
    )
    size.add_argument("--fraction", type=options.share, metavar="X", help="of the problems of a dataset")
    task.add_argument(
        "--settings", type=settings_type, metavar="A,B",
        help=SETTINGS,
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
    add_shard(group)
    add_dry_run(group)
    options.add_json(parser)


def add_dry_run(group: options.Group) -> None:
    group.add_argument(
        "--dry-run", action="store_true",
        help="say how many cells, chains, tokens, bytes and hours it would be, and stop: no weights are loaded",
    )  # fmt: skip
    group.add_argument(
        "--speed", type=options.above_0, metavar="TOKENS",
        help="a second, for the hours of --dry-run (that of the folder's chains, else 165)",
    )  # fmt: skip


def add_shard(group: options.Group) -> None:
    group.add_argument(
        "--shard", type=_shard, metavar="I/N",
        help="make only the I-th of N parts of the chains, in a folder inside of DIR, without tables; the same command"
        " for each part, on any machine, then `reasonalloc study merge DIR`",
    )  # fmt: skip


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_ray(group: options.Group) -> None:
    """Options of where and how a run's batches are decoded."""
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
    group.add_argument(
        "--graphs", action="store_true",
        help="decode steps are CUDA graphs; for a model on a GPU that has a CUDA backend (docs/cuda.md)",
    )  # fmt: skip


def settings_type(text: str) -> list[str]:
    """Separated by ";", or by "," where all are names."""
    parts = [x.strip() for x in (text.split(";") if ";" in text or "=" in text else text.split(","))]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"an entry of the list is empty in {text!r}")
    return parts
