"""`reasonalloc study`: a comparison that was written down before, and studies made in parts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from reasonalloc.cli import options, plan, study
from reasonalloc.cli.console import wide_console
from reasonalloc.files import Json, replace_text
from reasonalloc.lab.evaluate import merge as merging
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.evaluate.records import PACKED, pack
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.evaluate.study_file import StudyFile, as_json, section, shipped, text_of
from reasonalloc.lab.table import Section


def run(args: argparse.Namespace) -> int:
    file = StudyFile.load(args.file).part(args.budgets, args.cells, args.batch_size)
    cells = file.made()
    evaluation = study.of_file(args, file, Path(args.output or Path("studies-out") / file.name))
    evaluation.about |= {"study": f"{file.name}.yaml", "study_sha256": file.digest}
    if file.partial:
        part = {"budgets": file.budgets, "cells": list(file.cells), "comparisons_planned": file.family}
        evaluation.about["part"] = part
        evaluation.notes.append(f"a part of the study {file.name}: not all of its cells and budgets")
    out = options.console(args)
    if file.question:
        out.print(file.question)
    if args.dry_run:
        each = [cells, *(found for _, found in file.ablated(plan.UnmeasuredWaves(evaluation.task)))]
        return plan.show(args, out, [(evaluation, list({x.name: x for some in each for x in some}.values()))])
    evaluation.records.open(evaluation.settings)  # other settings are an error before a wave is measured
    if file.equal_bytes is not None:
        with study.status_line(out, evaluation):
            pilot = study.Pilot(file.task, file.pilot, file.seed, file.settings, file.tolerance)
            cells = study.at_equal_bytes(evaluation, file.equal_bytes, evaluation.with_wave(cells), pilot, out)
    tables: dict[str, Json] = {}
    if cells:
        tables[file.name] = _compared(args, file, evaluation, cells, out)
    with study.status_line(out, evaluation):
        ablated = file.ablated(evaluation.waves)
    for ablation, found in ablated:
        out.print(ablation.question)
        summary = study.measured(
            out, evaluation, found, evaluation.folder / ablation.name, ablation.question, args.regrade
        )
        tables[ablation.name] = {} if summary is None else summary.as_json()
    if args.pack:
        pack(evaluation.records.by_key.values(), evaluation.records.folder / PACKED)
    if evaluation.shard is not None:
        options.write_json(args.json, study.shard_json(evaluation))
    else:
        options.write_json(args.json, {"schema": 1, "tables": tables} if file.ablations else tables[file.name])
    return 0


def _compared(args: argparse.Namespace, file: StudyFile, evaluation: Study, cells: list[Cell], out: Console) -> Json:
    """The table of a file's cells and the comparisons that it names; that of a part does not take the whole's place."""
    stem = evaluation.folder / (f"{file.name}-part" if file.partial else file.name)
    summary = study.measured(out, evaluation, cells, stem, file.question or file.name, args.regrade)
    if summary is None:
        return {}
    comparisons = file.compared(summary)
    if comparisons:
        table = section(comparisons)
        out.print(table.rich())
        replace_text(f"{stem}.md", f"{summary.markdown()}\n{table.markdown()}")
        options.write_json(f"{stem}-comparisons.json", {"schema": 1, "comparisons": as_json(comparisons)})
    return {**summary.as_json(), "comparisons": as_json(comparisons)}


def show(args: argparse.Namespace) -> int:
    """`reasonalloc study show`: the studies of this package, or one of them as it is written."""
    if args.name is not None:
        sys.stdout.write(text_of(args.name))
        return 0
    table = Table(show_header=False, box=None)
    for name in shipped():
        table.add_row(name, StudyFile.load(name).question)
    wide_console().print(table)
    return 0


def merge(args: argparse.Namespace) -> int:
    """`reasonalloc study merge`."""
    found = merging.merge(args.folder, args.shards)
    out = options.console(args)
    for each in found:
        rows = [[cell, f"{chains:,}"] for cell, chains in each.chains.items()]
        title = f"{each.folder}: {len(each.shards)} shards"
        note = f"{each.again:,} chains were in several shards, the same in each." if each.again else ""
        out.print(Section(title, ["cell", "chains"], [*rows, ["all", f"{sum(each.chains.values()):,}"]], note).rich())
        for name in each.missing:
            out.print(f"warning: {name} is not there", markup=False, highlight=False)
    out.print(
        "The command of the shards without --shard makes the tables there, and chains that are missing.",
        markup=False, highlight=False,
    )  # fmt: skip
    options.write_json(args.json, {"schema": 1, "merged": [x.as_json() for x in found]})
    return 0
