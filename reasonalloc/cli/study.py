"""Options that `evaluate accuracy` and `ablate` share, and the study they become."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from reasonalloc.cli import options
from reasonalloc.files import Json, locked, visible
from reasonalloc.hf.decode import Sampling
from reasonalloc.lab import models
from reasonalloc.lab.evaluate import equal_bytes
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.evaluate.records import PACKED, pack
from reasonalloc.lab.evaluate.study import RaySettings, Study, write
from reasonalloc.lab.evaluate.study_file import StudyFile
from reasonalloc.lab.evaluate.summary import Summary
from reasonalloc.lab.evaluate.workers import Source
from reasonalloc.lab.tasks import items, other_items


def source_of(args: argparse.Namespace, model: str, dtype: str) -> Source:
    """Of the model, for this process or for actors, which may have other devices."""
    models.check_name(model)
    if args.ray is None and args.device_map:
        models.check_device(args.device_map)
    if args.ray is not None and not args.gpus and args.device_map not in (None, "cpu"):
        raise ValueError(f"--device-map {args.device_map} with --ray needs --gpus, the number of each actor")
    threads = args.threads or (1 if args.ray is not None else None)
    if args.graphs and args.device_map is None and not args.gpus:
        raise ValueError("--graphs needs a GPU: --device-map cuda")
    return Source(model, dtype, threads, args.device_map or ("auto" if args.gpus else None), args.graphs)


def ray_of(args: argparse.Namespace) -> RaySettings | None:
    if args.ray is None and (args.workers or args.gpus):
        raise ValueError("--workers and --gpus are for --ray")
    return None if args.ray is None else RaySettings(args.ray or None, args.workers, args.gpus)


def study_of(args: argparse.Namespace) -> Study:
    """The study as the options of `add` say; ValueError for what does not fit."""
    problems = items(
        args.task, count=args.problems, fraction=args.fraction or 1.0, seed=args.seed, settings=args.settings
    )
    sampling = Sampling(args.temperature, args.top_p, args.max_new_tokens, args.seed)
    source = source_of(args, args.model or models.reasoner_of(args.task), args.dtype)
    return Study(
        Path(args.output), source, args.task, problems, sampling, args.samples, args.batch_size, ray_of(args),
        shard=args.shard,
    )  # fmt: skip


def of_file(args: argparse.Namespace, file: StudyFile, folder: Path) -> Study:
    """What a study file says, where and in how many parts the options say."""
    problems = items(file.task, count=file.problems, seed=file.seed, settings=file.settings)
    sampling = Sampling(file.temperature, file.top_p, file.max_new_tokens, file.seed)
    source = source_of(args, file.model or models.reasoner_of(file.task), file.dtype)
    return Study(
        folder, source, file.task, problems, sampling, file.samples, file.batch_size, ray_of(args),
        wave_tokens=file.wave_tokens, shard=args.shard,
    )  # fmt: skip


@dataclass(frozen=True)
class Pilot:
    """On what budgets of equal bytes are found.

    count: of problems (of ledger: of each setting), drawn by another seed than the evaluation's, which is `seed`.
    tolerance: of the bytes, a share.
    """

    task: str
    count: int
    seed: int
    settings: Sequence[str] | None
    tolerance: float


def at_equal_bytes(study: Study, wanted: str, cells: Sequence[Cell], pilot: Pilot, out: Console) -> list[Cell]:
    """The cells at the mean bytes of those with the label `wanted`, or at a size in bytes; says what it finds."""
    seed = pilot.seed + equal_bytes.SEED
    given = other_items(pilot.task, study.items, count=pilot.count, seed=seed, settings=pilot.settings)
    used = {x.hash for x in study.items}
    if again := sum(x.hash in used for x in given):
        out.print(f"warning: {again} of {len(given)} pilot problems are among those evaluated: there are no others")
    with locked(study.folder / ".equal-bytes.lock"):  # shards that start together search once
        matcher = equal_bytes.Matcher(
            lambda cell: study.mean_bytes(cell, given), given, study.folder, study.settings, pilot.tolerance,
            lambda text: out.print(visible(text), markup=False, highlight=False),
        )  # fmt: skip
        found, matches = equal_bytes.matched(matcher, wanted, cells)
    out.print(equal_bytes.table(matches, len(given)).rich())
    study.about["equal_bytes"] = [asdict(x) for x in matches]
    return found


@contextmanager
def status_line(out: Console, study: Study) -> Iterator[None]:
    """Inside the block a terminal shows what takes its time."""
    if not out.is_terminal:
        yield
        return
    with out.status(study.task) as status:
        study.say = status.update
        yield


@contextmanager
def progress_bar(out: Console, study: Study) -> Iterator[Callable[[int, int], None]]:
    """A bar that says what the study does inside the block; what it gives is for `Study.run`."""
    with options.bar(out) as progress:
        task = progress.add_task("", total=None)
        study.say = lambda text: progress.update(task, description=text)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def measured(
    out: Console, study: Study, cells: Sequence[Cell], stem: Path, question: str = "", regrade: bool = False
) -> Summary | None:
    """Makes what is missing under a progress bar, the task's wave too where a cell lacks one; prints the table, and
    writes it as stem.json, .md and .png. Of a shard there is no table, and None."""
    if regrade:
        study.regrade()
    if study.ray is None and study.source.device_map is None and _gpu():
        out.print("the model lies on the CPU, and there is a GPU: --device-map cuda uses it", highlight=False)
    where = visible(str(study.records.folder))
    try:
        with progress_bar(out, study) as progress:
            cells = study.with_wave(cells)
            study.run(cells, progress)
    except KeyboardInterrupt:
        kept = f"{len(study.records.by_key):,} chains are kept in {where}: the same command goes on from there"
        out.print(kept, markup=False, highlight=False, soft_wrap=True)
        raise
    if study.shard is not None:
        made = len(study.records.by_key)
        out.print(f"{made:,} chains of shard {study.shard} are in {where}", markup=False, highlight=False)
        if not study.batches(cells, ()):
            fewer = f"there are fewer than {study.shard.count}: a smaller --batch-size helps"
            out.print(f"whole batches go to shards, and {fewer}", markup=False, highlight=False, soft_wrap=True)
        return None
    summary = study.summary(cells)
    out.print(summary.table())
    write(summary, stem, question)
    table = f"table and picture: {visible(str(stem))}.md, .json and .png; chains: {where}"
    out.print(table, markup=False, highlight=False, soft_wrap=True)
    return summary


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run_and_report(
    args: argparse.Namespace, study: Study, cells: Sequence[Cell], name: str, question: str = ""
) -> None:
    """`measured` as the options of `add` say, written as `name` into the study's folder. question: of an ablation."""
    summary = measured(options.console(args), study, cells, study.folder / name, question, args.regrade)
    if args.pack:
        pack(study.records.by_key.values(), study.records.folder / PACKED)
    options.write_json(args.json, shard_json(study) if summary is None else summary.as_json())


def shard_json(study: Study) -> Json:
    """What is reported of a shard."""
    chains = len(study.records.by_key)
    return {"schema": 1, "shard": str(study.shard), "folder": str(study.records.folder), "chains": chains}
