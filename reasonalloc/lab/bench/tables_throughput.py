"""Tables of the part `throughput`."""

from __future__ import annotations

from reasonalloc.lab.bench.results import Throughput
from reasonalloc.lab.bench.section import Section, mb, names_in, thousands, times


def _steps(data: Throughput) -> Section:
    caches = names_in(row["step_s"] for row in data["steps"])
    own = names_in(row["ratio"] for row in data["steps"])
    rows = [
        [str(row["batch"]), thousands(row["length"]), *(f"{row['step_s'][name] * 1e3:.1f}" for name in caches)]
        + [times(row["ratio"][name].get(peer)) for name in own for peer in ("static", "dynamic")]
        for row in data["steps"]
    ]
    header = ["batch", "tokens", *(f"{name}, ms" for name in caches)]
    header += [f"{name} / {peer}" for name in own for peer in ("static", "dynamic")]
    note = (
        "Medians of steps in turn; with a budget the mean over an interval of 128 steps, cut included. a / b: how many"
        " times as fast a is. Caches are filled with the keys and values of a text that the model read, the same in"
        " every row; with a budget through attention and cuts, at most the newest 4 x (budget + interval) tokens."
    )
    return Section("One decode step of the model", header, rows, note, words=0)


def _cuts(data: Throughput) -> Section:
    rows = [
        [row["cache"], str(row["batch"]), f"{row['total_s'] / row['steps'] * 1e3:.1f}", f"{row['share']:.2%}"]
        + [f"{row['spent_s'][name] * 1e3:.2f}" for name in ("score", "route", "evict", "cut")]
        for row in data["cuts"]
    ]
    header = ["cache", "batch", "step, ms", "share of cuts", "score, ms", "route, ms", "evict, ms", "all of it, ms"]
    return Section("Cuts within one interval of 128 steps", header, rows)


def _overhead(data: Throughput) -> Section:
    rows = [
        [
            row["cache"],
            str(row["batch"]),
            f"{row['update_us']:.1f}",
            f"{row['attention_us']:.1f}",
            "-" if row["attend_in_c_us"] is None else f"{row['attend_in_c_us']:.1f}",
            f"{row['overhead_us']:.1f}",
        ]
        for row in data["overhead"]
    ]
    header = ["cache", "batch", "update", "attention function", "of it attention in C", "overhead"]
    note = (
        "Microseconds a layer, on a nearly empty cache. Overhead: update and attention function without the attention"
        " in C (ours), with it (stock)."
    )
    return Section("What a cache adds to a step", header, rows, note)


def _equal_memory(data: Throughput) -> Section:
    rows = []
    static = {x["chain"]: x["best"] for x in data["equal_memory"] if x["cache"] == "static"}
    dynamic = {x["chain"]: x["best"] for x in data["equal_memory"] if x["cache"] == "dynamic"}
    for row in data["equal_memory"]:
        best = row["best"]
        cells = ["-"] * 5
        if best:
            ratios = [
                times(best["tokens_per_s"] / peer["tokens_per_s"]) if peer else "-"
                for peer in (static.get(row["chain"]), dynamic.get(row["chain"]))
            ]
            cells = [str(best["rows"]), f"{best['tokens_per_s']:.1f}", mb(best["cache_bytes"]), *ratios]
        rows.append([thousands(row["chain"]), row["cache"], thousands(row["fits_rows"]), *cells])
    how = "really decoded" if data["whole_chains"] else "sampled at several lengths (trapezoids)"
    note = (
        f"At most {mb(data['memory_limit'])} MB of cache and {data['most_rows']} rows; whole chains {how}."
        " DynamicCache: its second copy while it grows is not counted."
    )
    header = ["chain", "cache", "rows that fit", "best rows", "tokens/s", "cache, MB", "/ static", "/ dynamic"]
    return Section("Throughput at equal cache memory", header, rows, note, words=2)


def _break_even(data: Throughput) -> Section:
    rows = [
        [row["cache"]]
        + [
            thousands(length) if (length := row["from"][x]) else f"not up to {row['longest']:,}"
            for x in ("static", "dynamic")
        ]
        for row in data["break_even"]
    ]
    return Section("Batch 1: chains over which a budget is faster, from length", ["cache", "static", "dynamic"], rows)


def sections(data: Throughput) -> list[Section]:
    """All of them."""
    return [_steps(data), _cuts(data), _overhead(data), _equal_memory(data), _break_even(data)]
