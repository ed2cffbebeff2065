"""Tables of the part `kernels`."""

from __future__ import annotations

from typing import Literal

from reasonalloc.lab.bench.results import Kernels
from reasonalloc.lab.bench.section import Section, ms, names_in, thousands, times


def _compression(data: Kernels) -> Section:
    peers = names_in(row["ratio"] for row in data["compression"])
    rows = [
        [row["keys"], row["dtype"], row["cut"], thousands(row["n"]), ms(row["median_s"]["ours"])]
        + [x for peer in peers for x in (ms(row["median_s"][peer]), times(row["ratio"][peer]))]
        for row in data["compression"]
    ]
    note = "From n to n - 128 slots a head. ms, medians; ratios are medians of paired runs."
    if data["no_real_keys"]:
        note += f" No real keys: {data['no_real_keys']}"
    header = ["keys", "dtype", "cut", "n", "ours"] + [x for peer in peers for x in (peer, "ratio")]
    return Section("Compression of one layer: score, route, evict", header, rows, note, words=3)


def _recall(data: Kernels) -> Section:
    found = data.get("recall", [])
    peers = names_in(row["ratio"] for row in found)
    rows = [
        [row["keys"], row["dtype"], thousands(row["n"]), thousands(row["cold"]), ms(row["median_s"]["ours"])]
        + [x for peer in peers for x in (ms(row["median_s"][peer]), times(row["ratio"][peer]))]
        + [f"{row['cold_bytes'][peer] / 2**20:.2f}" for peer in peers]
        for row in found
    ]
    header = ["keys", "dtype", "n", "cold", "no recall"] + [x for peer in peers for x in (peer, "times")]
    return Section(
        "A cut that scores evicted tokens again",
        header + [f"MiB, {peer}" for peer in peers],
        rows,
        "From n to n - 128 slots a head, the same for all heads, with so many cold tokens a head. ms, medians; times:"
        " that of the cut without recall. MiB: of the cold tier.",
        words=2,
    )


def _scratch(data: Kernels) -> Section:
    who = names_in(row["bytes"] for row in data["scratch"])
    rows = []
    for row in data["scratch"]:
        peak = {name: max(cut["peak_bytes"] for cut in row["bytes"][name].values()) for name in who}
        kept = row["bytes"]["ours"]["first"]["kept_bytes"]
        ratios = [f"{peak[name] / max(peak['ours'], 4096):,.0f}x" for name in who if name != "ours"]
        cells = [f"{peak[name] / 2**20:,.2f}" for name in who]
        rows.append([row["dtype"], thousands(row["n"]), *cells, f"{kept / 2**20:.2f}", *ratios])
    header = ["dtype", "n", *who, "ours, remembered", *(f"{name} / ours" for name in who if name != "ours")]
    return Section(
        "Scratch memory of one compression",
        header,
        rows,
        "MiB: rise of the peak of resident memory during the call, in a fresh process, the larger of a first and a"
        " later cut (the kernel counts in steps of up to 128 KiB). Remembered: what stays for the next cut.",
    )


def _scorers(data: Kernels) -> list[Section]:
    rows = [
        [row["dtype"], thousands(row["n"]), name, ms(row["cut"]["median_s"][name]), ms(row["step"]["median_s"][name])]
        for row in data.get("scorers", [])
        for name in row["cut"]["median_s"]
    ]
    note = "From n to n - 128 slots a head, uniform. ms, medians; step: one token, among the last 8 before a cut."
    header = ["dtype", "n", "scorer", "cut", "step"]
    return [Section("A cut and a step by each scorer, one core", header, rows, note, words=3)] if rows else []


def _attention(data: Kernels) -> Section:
    peers = names_in(row["ratio"] for row in data["attention"])
    rows = [
        [row["dtype"], row["from"], str(row["batch"]), thousands(row["n"]), ms(row["median_s"]["ours"])]
        + [f"{row['bytes'] / row['median_s']['ours'] / 1e9:.1f}", f"{row['roofline_gb_s']:.1f}"]
        + [f"{row['roofline_share']['ours']:.0%}", f"{row['roofline_share']['SDPA grouped']:.0%}"]
        + [times(row["ratio"][peer]) for peer in peers]
        for row in data["attention"]
    ]
    header = ["dtype", "from", "batch", "n", "ours, ms", "ours, GB/s", "read, GB/s", "ours / read", "SDPA / read"]
    note = (
        "GB/s of keys and values. read: read bandwidth of the same core in the same rounds."
        " Ratios: peer's time over ours. From memory: layers in turn that no cache can hold together. A share above"
        " 100 % says that the reader did not reach the limit there."
    )
    return Section("Attention of one decode step, one core", header + peers, rows, note, words=2)


def _gathering(data: Kernels) -> list[Section]:
    found = data.get("gathering", [])
    peers = names_in(row["ratio"] for row in found)
    rows = [
        [row["dtype"], thousands(row["n"]), ms(row["median_s"]["nothing"])]
        + [f"{row['ratio'][x] - 1:+.1%}" for x in peers]
        for row in found
    ]
    note = "What a step takes longer that leaves a statistic behind; medians of paired runs."
    return [Section("Statistics of a decode step", ["dtype", "n", "without, ms", *peers], rows, note)] if found else []


def _threads(data: Kernels) -> Section:
    who: tuple[Literal["ours", "SDPA grouped", "read"], ...] = ("ours", "SDPA grouped", "read")
    rows = [
        [row["dtype"], str(row["batch"]), thousands(row["n"]), *(times(row[name]["ratio"]["one"]) for name in who)]
        for row in data["threads"]
    ]
    return Section("Two threads against one", ["dtype", "batch", "n", "ours", "SDPA grouped", "reading alone"], rows)


def sections(data: Kernels) -> list[Section]:
    """All of them."""
    first = [_compression(data), *_scorers(data), _recall(data), _scratch(data)]
    return [*first, _attention(data), *_gathering(data), _threads(data)]
