"""The table of the part `kvpress`."""

from __future__ import annotations

from reasonalloc.lab.bench.results import Kvpress
from reasonalloc.lab.bench.section import Section, mb, times


def sections(data: Kvpress) -> list[Section]:
    rows: list[list[str]] = []
    base: dict[tuple[bool, int], float] = {}
    for row in data["rows"]:
        key = (row["who"] == "kvpress", row["rows"])
        base.setdefault(key, row["tokens_per_s"])  # each side's own full cache comes first
        rows.append(
            [
                row["who"],
                row["cache"],
                str(row["rows"]),
                f"{row['tokens_per_s']:.1f}",
                times(row["tokens_per_s"] / base[key]),
                mb(row["cache_bytes"]),
                mb(row["resident_loaded"]),
                mb(row["resident_peak_prefill"]),
                mb(row["resident_peak_decode"]),
            ]
        )
    header = ["by", "cache", "rows", "tokens/s", "/ own full cache", "cache, MB", "resident loaded", "peak prefill"]
    note = "" if rows else "kvpress: not present (see --kvpress-python)"
    return [Section("Decoding with kvpress and with ours", [*header, "peak decode"], rows, note, words=2)]
