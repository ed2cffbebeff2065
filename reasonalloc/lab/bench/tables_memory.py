"""Table of the part `memory`."""

from __future__ import annotations

from reasonalloc.lab.bench.results import Memory
from reasonalloc.lab.bench.section import Section, mb, thousands, times


def _memory(data: Memory) -> Section:
    static = next((x["rise_peak"] for x in data["results"] if x["cache"] == "static"), None)
    rows = []
    for row in data["results"]:
        stats = row.get("stats")
        tensors = max((x["tensors"] for x in row["samples"] if "tensors" in x), default=0) - row["baseline_tensors"]
        reserved = max((x["reserved"] for x in row["samples"] if "reserved" in x), default=None)
        rows.append(
            [
                row["cache"],
                str(row["rows"]),
                thousands(row["tokens"]),
                *map(mb, (row["baseline"], row["mean"], row["peak"], row["rise_peak"])),
                times(row["rise_peak"] / static) if static else "-",
                mb(tensors),
                mb(stats["peak_bytes"] if stats else row["cache_bytes"]),
                mb(reserved) if reserved is not None else "-",
                f"{row['held_of_bound']:.3f}" if "held_of_bound" in row else "-",
            ]
        )
    header = ["cache", "rows", "tokens", "resident before", "mean", "peak", "rise", "rise / static", "torch tensors"]
    note = (
        "MB, a process for each cache, every step real. "
        + data["torch_counts"][0].upper()
        + data["torch_counts"][1:]
        + "."
    )
    return Section(
        "Memory of the process over a chain",
        [*header, "cache, peak", "reserved", "held / (budget + interval)"],
        rows,
        note,
    )


def sections(data: Memory) -> list[Section]:
    """All of them."""
    return [_memory(data)]
