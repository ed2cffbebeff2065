"""`reasonalloc study`: a comparison that was written down before, and studies made in parts."""

from __future__ import annotations

import argparse
from pathlib import Path

from reasonalloc.cli import options, plan, study
from reasonalloc.files import replace_text
from reasonalloc.lab.evaluate import merge as merging
from reasonalloc.lab.evaluate.records import PACKED, pack
from reasonalloc.lab.evaluate.study_file import StudyFile, as_json, section
from reasonalloc.lab.models import REASONER
from reasonalloc.lab.table import Section

# What a file says in place of the options of `evaluate accuracy`.
_SAID = (
    "dtype", "task", "settings", "problems", "seed", "samples", "temperature", "top_p", "max_new_tokens", "batch_size",
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    file = StudyFile.load(args.file)
    cells = file.made()
    for name in _SAID:
        setattr(args, name, getattr(file, name))
    args.model, args.fraction = file.model or REASONER, None
    args.output = args.output or str(Path("studies-out") / file.name)
    own = study.study_of(args)
    own.about |= {"study": Path(args.file).name, "study_sha256": file.digest}
    out = options.console(args)
    if file.question:
        out.print(file.question)
    if args.dry_run:
        return plan.show(args, out, [(own, cells)])
    own.records.open(own.settings)  # other settings are an error before a wave is measured
    stem = own.folder / file.name
    summary = study.measured(out, own, own.with_wave(cells), stem, file.question or file.name, args.regrade)
    if args.pack:
        pack(own.records.by_key.values(), own.records.folder / PACKED)
    if summary is None:
        options.write_json(args.json, study.shard_json(own))
        return 0
    comparisons = file.compared(summary)
    table = section(comparisons)
    if comparisons:
        out.print(table.rich())
        replace_text(stem.with_suffix(".md"), f"{summary.markdown()}\n{table.markdown()}")
    options.write_json(f"{stem}-comparisons.json", {"schema": 1, "comparisons": as_json(comparisons)})
    options.write_json(args.json, {**summary.as_json(), "comparisons": as_json(comparisons)})
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
