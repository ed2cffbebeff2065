"""Runs the parts that are asked for, saves each as it ends, prints what was found."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from reasonalloc.bench import kernels, memory, report, throughput
from reasonalloc.bench.settings import Settings

_RUN = {"kernels": kernels.run, "throughput": throughput.run, "memory": memory.run}


def run(settings: Settings, out: Console, progress: Console) -> dict[str, Any]:
    """Results by part. Tables go to `out`, lines on the way to `progress`; JSON and Markdown to `settings.output`.

    RuntimeError if a result is not that of its reference.
    """
    if settings.output is not None:
        settings.output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def say(line: str) -> None:
        progress.print(f"{time.monotonic() - start:5.0f} s  {line}", markup=False, highlight=False, soft_wrap=True)

    results: dict[str, Any] = {}
    for part in settings.parts:
        with progress.status(part):
            results[part] = _RUN[part](settings, say)
        for section in report.sections(part, results[part]):
            if section.rows:
                out.print(section.rich())
        if settings.output is not None:
            _save(settings.output, part, results[part])
    out.print(report.targets_section(results).rich())
    if settings.output is not None:
        out.print(f"samples and report: {settings.output}")
    return results


def _save(folder: Path, part: str, data: Any) -> None:
    (folder / f"{part}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    report.write_report(folder)
