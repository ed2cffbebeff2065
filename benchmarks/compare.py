"""Two checkouts against each other: is the new one as fast as the old one, row by row?

    git worktree add ../old COMMIT
    python benchmarks/compare.py ../old .                       # builds both in place, then about 10 minutes
    python benchmarks/compare.py ../old . --only 'step|interval' --output compare.json

A process on each side stays alive, both on one core with one thread, and they are asked in turn (old new, new old,
...), so that whatever else the machine does meets both. Times are processor times. A row's speed is the median over all
rounds of old time / new time: above 1 the new one is faster. Processes are started anew `--sets` times, since where
memory comes to lie decides a few per cent for as long as a process lives. The interval covers the 95 % interval of the
median and the medians of all sets; a row is too slow where all of it is below `--bound`. Compare a checkout with itself
to see the noise.

The exit status is 1 if a row is too slow or cannot be run, else 0.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("compare_worker.py")
SAMPLE_S = 0.02  # what a sample takes at least
SAMPLE_WALL_S = 0.3  # and at most, preparation included, where one call does not take longer


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the median of what `values` were drawn from, by order statistics (the sign test's).

    It holds for every distribution. Fewer than 6 values cannot give 95 %: then it is their range.
    """
    ordered, n = sorted(values), len(values)
    tail, cut = 0.0, 0
    while cut < n // 2:
        tail += math.comb(n, cut) / 2**n
        if 2 * tail > 1 - confidence:
            break
        cut += 1
    cut = max(cut, 1)
    return ordered[cut - 1], ordered[n - cut]


@dataclass
class Row:
    """Samples of one case: [set][round] seconds of a unit, the n-th of old and new being of one round."""

    name: str
    old: list[list[float]] = field(default_factory=list)
    new: list[list[float]] = field(default_factory=list)
    difference: float | None = 0.0  # largest, of the results; None where they have different sizes
    error: str = ""

    def ratios(self) -> list[list[float]]:
        """[set][round] old / new."""
        return [[a / b for a, b in zip(x, y, strict=True)] for x, y in zip(self.old, self.new, strict=True)]

    def speed(self) -> float:
        return statistics.median(x for each in self.ratios() for x in each)

    def interval(self) -> tuple[float, float]:
        """Of the median over rounds, widened to the medians of all sets."""
        sets = self.ratios()
        low, high = median_interval([x for each in sets for x in each])
        medians = [statistics.median(each) for each in sets]
        return min(low, *medians), max(high, *medians)

    def too_slow(self, bound: float) -> bool:
        return bool(self.error) or self.interval()[1] < bound

    def seconds(self) -> tuple[float, float]:
        """Median seconds of a unit, old and new."""
        old, new = (statistics.median(x for each in side for x in each) for side in (self.old, self.new))
        return old, new

    def to_json(self, bound: float) -> dict[str, Any]:
        result: dict[str, Any] = asdict(self) | {"too_slow": self.too_slow(bound)}
        if not self.error:
            result |= {"speed": self.speed(), "interval": self.interval(), "median_s": self.seconds()}
        return result


def largest_difference(a: Sequence[float], b: Sequence[float]) -> float | None:
    if len(a) != len(b):
        return None
    return max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)


def in_words(seconds: float) -> str:
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if seconds >= s), ("us", 1e-6))
    return f"{seconds / size:.4g} {unit}"


def table(rows: Sequence[Row], bound: float) -> str:
    """Markdown, a line a row."""
    lines = ["| case | old | new | speed, new / old | 95 % interval | |", "|---|---:|---:|---:|---|---|"]
    for row in rows:
        if row.error:
            lines.append(f"| {row.name} | | | | | {' '.join(row.error.split())} |")
            continue
        (old, new), (low, high) = row.seconds(), row.interval()
        remarks = ["TOO SLOW"] if row.too_slow(bound) else []
        if row.difference is None or not row.difference <= 1e-3:
            remarks.append("other results" if row.difference is None else f"results differ by {row.difference:.2g}")
        lines.append(
            f"| {row.name} | {in_words(old)} | {in_words(new)} | {row.speed():.3f} | {low:.3f} to {high:.3f} |"
            f" {', '.join(remarks)} |"
        )
    return "\n".join(lines)


# ---- the two sides ---------------------------------------------------------------------------------------------------


class Side:
    """A worker process on a checkout."""

    def __init__(self, checkout: Path, core: int | None) -> None:
        self.checkout = checkout
        environment = os.environ | {
            "PYTHONPATH": str(checkout),
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            "HF_HUB_OFFLINE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(checkout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=checkout,
        )
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})
        self.versions: dict[str, str] = {}

    def wait_until_ready(self) -> None:
        self.versions = self._read()["versions"]

    def ask(self, request: str) -> dict[str, Any]:
        """Its answer. RuntimeError with what it says where it fails."""
        assert self.process.stdin
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker on {self.checkout} died with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def calls_for(side: Side) -> int:
    """Calls that a sample is made of, from how long one takes."""
    side.ask("run 1")
    start = time.perf_counter()
    seconds = side.ask("run 1")["seconds"]
    wall = time.perf_counter() - start
    return max(1, min(math.ceil(SAMPLE_S / max(seconds, 1e-7)), int(SAMPLE_WALL_S / wall)))


def measure(old: Side, new: Side, row: Row, rounds: int) -> None:
    """Adds one set of rounds to a row."""
    opened = [side.ask(f"open {row.name}") for side in (old, new)]
    row.difference = largest_difference(opened[0]["result"], opened[1]["result"])
    calls = calls_for(old)
    new.ask(f"run {calls}")
    samples: dict[Side, list[float]] = {old: [], new: []}
    for number in range(rounds):
        for side in (old, new) if number % 2 == 0 else (new, old):
            samples[side].append(side.ask(f"run {calls}")["seconds"] / (calls * opened[0]["units"]))
    row.old.append(samples[old])
    row.new.append(samples[new])


def compare(old: Path, new: Path, only: str, rounds: int, sets: int, core: int | None) -> tuple[list[Row], list[Any]]:
    """All rows, and the versions of both sides."""
    rows: dict[str, Row] = {}
    versions: list[Any] = []
    for number in range(sets):
        sides = Side(old, core), Side(new, core)
        try:
            for side in sides:
                side.wait_until_ready()
            versions = [side.versions for side in sides]
            for name in sides[0].ask(f"list {only}")["names"]:
                row = rows.setdefault(name, Row(name))
                if row.error:
                    continue
                print(f"set {number + 1} of {sets}: {name}", file=sys.stderr, flush=True)
                try:
                    measure(*sides, row, rounds)
                except RuntimeError as error:
                    row.error = str(error)
        finally:
            for side in sides:
                side.close()
    return list(rows.values()), versions


# ---- command line ----------------------------------------------------------------------------------------------------


def git(checkout: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def machine(core: int | None) -> dict[str, Any]:
    processor = ""
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        processor = found[1] if found else ""
    return {"processor": processor, "cores": os.cpu_count(), "core": core, "load_average": list(os.getloadavg())}


def checkout(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "setup.py").is_file() or not (path / "reasonalloc").is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a checkout of reasonalloc")
    return path


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=checkout, metavar="OLD", help="a checkout, as `git worktree add` makes one")
    parser.add_argument("new", type=checkout, metavar="NEW", help="another, or the same one")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose names match; default: all")
    parser.add_argument("--rounds", type=int, default=11, help="of each case in each set (default 11)")
    parser.add_argument("--sets", type=int, default=3, help="times that both processes are started (default 3)")
    parser.add_argument("--bound", type=float, default=0.97, help="speed that no row may be below (default 0.97)")
    parser.add_argument("--core", type=int, help="core that both run on; default: the last one")
    parser.add_argument("--no-build", action="store_true", help="both are built already")
    parser.add_argument("--output", type=Path, metavar="FILE", help="samples, machine and versions as JSON")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.sets < 1:
        parser.error("--rounds and --sets must be at least 1")
    try:
        re.compile(options.only)
    except re.error as error:
        parser.error(f"--only {options.only!r} is no regular expression: {error}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    core = options.core
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        if core is not None and core not in allowed:
            sys.exit(f"--core {core} is not among the cores that this process may use: {sorted(allowed)}")
        core = max(allowed) if core is None else core
    if not options.no_build:
        for path in dict.fromkeys((options.old, options.new)):
            subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=path, check=True)
    before = machine(core)
    rows, versions = compare(options.old, options.new, options.only, options.rounds, options.sets, core)
    if not rows:
        sys.exit(f"no case matches {options.only!r}")
    commits = [git(x, "describe", "--always", "--dirty", "--abbrev=10") for x in (options.old, options.new)]
    slow = [row.name for row in rows if row.too_slow(options.bound)]
    print(f"old: {commits[0]}, new: {commits[1]}; {before['processor']}, core {core}; ", end="")
    print(", ".join(f"{name} {version}" for name, version in versions[1].items()))
    print(f"{options.sets} sets of {options.rounds} rounds; load {before['load_average'][0]:.1f} before\n")
    print(table(rows, options.bound))
    print(f"\n{len(rows)} rows, {len(slow)} below {options.bound}" + "".join(f"\n  {name}" for name in slow))
    if options.output:
        result = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "commits": commits,
            "machine": before,
            "versions": versions,
            "bound": options.bound,
            "rows": [row.to_json(options.bound) for row in rows],
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
