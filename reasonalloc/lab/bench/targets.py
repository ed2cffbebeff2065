"""What is wanted of the results, and whether they have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from reasonalloc.lab.bench.results import AttentionRow, Kernels, Memory, Result, Throughput

Results = Mapping[str, Result]  # by part: the content of its JSON file


@dataclass(frozen=True)
class Target:
    """`found` gives the figure (the worst of all cases meant) from a part's results, None where it was not measured."""

    part: str
    what: str
    wanted: float
    at_least: bool
    unit: str  # "x", "%", "MiB"
    found: Callable[[Any], float | None]  # of the part's own results
    limit: Callable[[Any], float | None] = lambda _: None  # what the machine allows, where that is less than `wanted`

    def show(self, value: float) -> str:
        """With three digits."""
        digits = f"{value * 100 if self.unit == '%' else value:.3g}" if value < 1000 else f"{value:,.0f}"
        return f"{digits} {self.unit}" if self.unit == "MiB" else f"{digits}{self.unit}"

    def row(self, results: Results) -> tuple[str, str, str, str]:
        """(what, wanted, measured, met or missed)."""
        wanted = f"{'at least' if self.at_least else 'at most'} {self.show(self.wanted)}"
        value = self.found(results[self.part]) if self.part in results else None
        if value is None:
            return self.what, wanted, "-", "not measured"
        met = value >= self.wanted if self.at_least else value <= self.wanted
        allowed = self.limit(results[self.part])
        if allowed is not None and allowed < self.wanted and not met:
            wanted += f" (this machine allows {self.show(allowed)})"
            met = value >= 0.95 * allowed
        return self.what, wanted, self.show(value), "met" if met else "missed"


def _least(values: Iterable[float]) -> float | None:
    return min(values, default=None)


def _most(values: Iterable[float]) -> float | None:
    return max(values, default=None)


def _compression(keys: str, n: int) -> Callable[[Kernels], float | None]:
    return lambda data: _least(
        row["ratio"]["published form"]
        for row in data["compression"]
        if (row["keys"], row["n"], row["cut"]) == (keys, n, "steady")
    )


def _scratch(data: Kernels) -> float | None:
    rows = [x for x in data["scratch"] if x["n"] == 4224]
    return _most(cut["peak_bytes"] / 2**20 for row in rows for cut in row["bytes"]["ours"].values())


def _attention(
    pick: Callable[[AttentionRow], bool], value: Callable[[AttentionRow], float] = lambda row: _best_sdpa(row)
) -> Callable[[Kernels], float | None]:
    return lambda data: _least(value(row) for row in data["attention"] if pick(row))


def _best_sdpa(row: AttentionRow) -> float:
    return min(row["ratio"]["SDPA grouped"], row["ratio"]["SDPA repeated"])


def _roofline(place: str) -> Callable[[Kernels], float | None]:
    def pick(row: AttentionRow) -> bool:
        return row["n"] >= 2048 and row["dtype"] in ("bfloat16", "float32") and row["from"] == place

    return _attention(pick, lambda row: row["roofline_share"]["ours"])


def _threads(who: Literal["ours", "read"]) -> Callable[[Kernels], float | None]:
    return lambda data: _least(row[who]["ratio"]["one"] for row in data["threads"])


def _step(own: str, peer: str, everywhere: bool = False) -> Callable[[Throughput], float | None]:
    return lambda data: _least(
        row["ratio"][own][peer] for row in data["steps"] if everywhere or (row["batch"], row["length"]) == (8, 4096)
    )


def _equal_memory(data: Throughput) -> float | None:
    best = {row["cache"]: row["best"] for row in data["equal_memory"] if row["chain"] == 4096 and row["best"]}
    if "static" not in best or "reasonalloc-256" not in best:
        return None
    return best["reasonalloc-256"]["tokens_per_s"] / best["static"]["tokens_per_s"]


def _held(data: Memory) -> float | None:
    return _most(row["held_of_bound"] for row in data["results"] if "held_of_bound" in row)


def _resident(data: Memory) -> float | None:
    """Rise of the peak with a budget over that with StaticCache; the worst budget."""
    static = [row["rise_peak"] for row in data["results"] if row["cache"] == "static"]
    own = [row["rise_peak"] for row in data["results"] if "held_of_bound" in row]
    return max(own) / static[0] if static and own and static[0] > 0 else None


TARGETS: tuple[Target, ...] = (
    Target("kernels", "compression, real keys, n = 1,152", 100, True, "x", _compression("real", 1152)),
    Target("kernels", "compression, real keys, n = 4,224", 400, True, "x", _compression("real", 4224)),
    Target("kernels", "compression, random keys, n = 1,152", 10, True, "x", _compression("random", 1152)),
    Target("kernels", "compression, random keys, n = 4,224", 30, True, "x", _compression("random", 4224)),
    Target("kernels", "scratch of a compression, n = 4,224", 2, False, "MiB", _scratch),
    Target(
        "kernels", "attention, n >= 2,048, share of the read bandwidth, memory", 0.85, True, "%", _roofline("memory")
    ),
    Target(
        "kernels",
        "attention, n >= 2,048, share of the read bandwidth, last-level cache",
        0.85,
        True,
        "%",
        _roofline("last-level cache"),
    ),
    Target("kernels", "attention against SDPA, every n and batch", 1.0, True, "x", _attention(lambda row: True)),
    Target("kernels", "attention against SDPA, n >= 2,048", 1.7, True, "x", _attention(lambda row: row["n"] >= 2048)),
    Target(
        "kernels",
        "attention against SDPA, batch 8, n = 8,192",
        2.5,
        True,
        "x",
        _attention(lambda row: (row["batch"], row["n"]) == (8, 8192)),
    ),
    Target("kernels", "attention, two threads against one", 1.7, True, "x", _threads("ours"), _threads("read")),
    Target(
        "throughput",
        "score + route + evict, share of decode time, interval 128",
        0.01,
        False,
        "%",
        lambda data: _most(row["share"] for row in data["cuts"]),
    ),
    Target(
        "throughput", "nothing evicted against StaticCache, every case", 1.0, True, "x", _step("full", "static", True)
    ),
    Target(
        "throughput",
        "nothing evicted against StaticCache, batch 8, 4,096 tokens",
        1.3,
        True,
        "x",
        _step("full", "static"),
    ),
    Target(
        "throughput",
        "nothing evicted against DynamicCache, batch 8, 4,096 tokens",
        3,
        True,
        "x",
        _step("full", "dynamic"),
    ),
    Target(
        "throughput",
        "budget 256 against StaticCache, batch 8, 4,096 tokens",
        2.2,
        True,
        "x",
        _step("reasonalloc-256", "static"),
    ),
    Target(
        "throughput",
        "budget 256 against DynamicCache, batch 8, 4,096 tokens",
        5.2,
        True,
        "x",
        _step("reasonalloc-256", "dynamic"),
    ),
    Target(
        "throughput",
        "tokens/s at equal memory, chain 4,096, budget 256 against StaticCache",
        6.5,
        True,
        "x",
        _equal_memory,
    ),
    Target("memory", "bytes held over those of budget + interval tokens a head", 1.05, False, "x", _held),
    Target("memory", "rise of peak resident memory, budget over StaticCache", 1.0, False, "x", _resident),
)


def table(results: Results) -> list[tuple[str, str, str, str]]:
    """A row for each target: what, wanted, measured, met / missed / not measured."""
    return [target.row(results) for target in TARGETS]
