"""The report: tables and targets from the JSON files alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonalloc.files import read_json, replace_text
from reasonalloc.lab.bench import (
    kernels,
    kvpress_peer,
    memory,
    tables_kernels,
    tables_kvpress,
    tables_memory,
    tables_throughput,
    targets,
    throughput,
)
from reasonalloc.lab.bench.results import Result
from reasonalloc.lab.bench.section import Section
from reasonalloc.lab.bench.settings import PARTS

SCHEMAS = {
    "kernels": kernels.SCHEMA,
    "throughput": throughput.SCHEMA,
    "memory": memory.SCHEMA,
    "kvpress": kvpress_peer.SCHEMA,
}
_TABLES: dict[str, Callable[[Any], list[Section]]] = {  # each for the results of its own part
    "kernels": tables_kernels.sections,
    "throughput": tables_throughput.sections,
    "memory": tables_memory.sections,
    "kvpress": tables_kvpress.sections,
}


def sections(part: str, data: Result) -> list[Section]:
    """The tables of one part's results."""
    return _TABLES[part](data)


def targets_section(results: Mapping[str, Result]) -> Section:
    return Section("Targets", ["target", "wanted", "measured", "verdict"], targets.table(results))


def load(directory: Path) -> tuple[dict[str, Result], list[str]]:
    """(results by part, why parts are missing)."""
    results: dict[str, Result] = {}
    missing = []
    for part in PARTS:
        path = directory / f"{part}.json"
        if not path.is_file():
            missing.append(f"{part}: not measured")
            continue
        data = read_json(path, "benchmark's result")
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMAS[part]:
            missing.append(
                f"{part}: not measured ({path.name} is of schema {schema}, not {SCHEMAS[part]}: run it again)"
            )
            continue
        results[part] = data
    return results, missing


TITLE = "# Results of `make bench`"


def _origin(part: str, data: Result) -> str:
    machine, versions = data["provenance"]["machine"], data["provenance"]["versions"]
    clock = machine["governor"] or "governor not readable"
    quick = " (quick)" if data["settings"]["quick"] else ""
    return (
        f"`{part}`{quick}, {data['provenance']['created']}: {machine['processor']}, cores {machine['cores_allowed']},"
        f" {machine['instruction_set']}, {machine['mhz_now']} MHz, {clock}, last-level cache"
        f" {machine['last_level_cache_bytes'] / 2**20:.0f} MiB, Python {versions['python']}, torch {versions['torch']},"
        f" transformers {versions['transformers']}, reasonalloc {versions['reasonalloc']}."
    )


def markdown(results: Mapping[str, Result], missing: Sequence[str]) -> str:
    """The whole report."""
    parts = [f"{TITLE}\n", "Made from the JSON files here, which hold every sample.\n"]
    parts += [_origin(part, data) + "\n" for part, data in results.items()]
    parts += [line + ".\n" for line in missing]
    parts.append(targets_section(results).markdown())
    for part, data in results.items():
        parts.append(f"## {part.capitalize()}\n")
        parts += [each.markdown() for each in sections(part, data) if each.rows or each.note]
    return "\n".join(parts)


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Writes README.md into a folder of results, from the JSON files in it; returns its path."""
    folder = Path(directory)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of results")
    path = folder / "README.md"
    replace_text(path, markdown(*load(folder)))
    return path
