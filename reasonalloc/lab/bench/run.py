"""Runs the parts that are asked for, saves each as it ends, prints what was found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from reasonalloc.files import replace_text
from reasonalloc.lab.bench import kernels, kvpress_peer, memory, report, throughput
from reasonalloc.lab.bench.progress import Log, Save, discard
from reasonalloc.lab.bench.results import Result
from reasonalloc.lab.bench.settings import Settings

_RUN: dict[str, Callable[[Settings, Log, Save], Result]] = {
    "kernels": kernels.run,
    "throughput": throughput.run,
    "memory": memory.run,
    "kvpress": kvpress_peer.run,
}


def run(settings: Settings, out: Console, progress: Console) -> dict[str, Result]:
    """Results by part. Tables go to `out`, lines on the way to `progress`; JSON and Markdown to `settings.output`.

    RuntimeError if a result is not that of its reference.
    """
    if settings.output is not None:
        settings.output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def log(line: str) -> None:
        progress.print(f"{time.monotonic() - start:5.0f} s  {line}", markup=False, highlight=False, soft_wrap=True)

    results: dict[str, Result] = {}
    for part in settings.parts:
        with progress.status(part):
            results[part] = _RUN[part](settings, log, _saver(settings.output, part))
        for section in report.sections(part, results[part]):
            if section.rows:
                out.print(section.rich())
        if settings.output is not None:
            _save(settings.output, part, results[part])
    out.print(report.targets_section(results).rich())
    if settings.output is not None:
        out.print(f"samples and report: {settings.output}")
    return results


def _saver(folder: Path | None, part: str) -> Save:
    """Writes what a part has so far to PART.partial.json: parts take long, and a killed run loses nothing."""
    if folder is None:
        return discard
    path = folder / f"{part}.partial.json"
    return lambda result: _write(path, result)


def _write(path: Path, data: Result) -> None:
    replace_text(path, json.dumps(data, indent=1) + "\n")


def _save(folder: Path, part: str, data: Result) -> None:
    _write(folder / f"{part}.json", data)
    (folder / f"{part}.partial.json").unlink(missing_ok=True)
    report.write_report(folder)
