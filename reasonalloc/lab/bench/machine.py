"""What about the machine decides a timing: caches, clock, memory, load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

from reasonalloc.lab.bench.timing import cores
from reasonalloc.provenance import provenance

_CPU = Path("/sys/devices/system/cpu/cpu0")
_ASSUMED_CACHE = 32 << 20  # where the system does not tell


class TimedMachine(TypedDict):
    """As `provenance.Machine`, and what decides the speed of memory; None where it cannot be read."""

    system: str
    processor: str
    cpu_flags: str | None
    cpus: int | None
    threads: int
    instruction_set: str
    gpus: list[str]
    cores_allowed: list[int]
    last_level_cache_bytes: int
    governor: str | None
    max_khz: str | None
    mhz_now: str | None
    memory: str | None
    huge_pages: str | None
    load_average: list[float] | None


class Surroundings(TypedDict):
    """As `provenance.Provenance`, with more of the machine."""

    versions: dict[str, str]
    machine: TimedMachine
    model: str
    seed: int | None
    command: str
    created: str


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _size(text: str | None) -> int | None:
    """ "107520K" in bytes."""
    if not text or not text.rstrip("KMG").isdecimal():
        return None
    return int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0)


def last_level_cache() -> int:
    """Bytes of the largest cache of a core; 32 MiB where the system does not tell."""
    found = [_size(_read(x)) for x in _CPU.glob("cache/index*/size")]
    return max((x for x in found if x), default=_ASSUMED_CACHE)


def _field(file: str, name: str) -> str | None:
    lines = (_read(Path(file)) or "").splitlines()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith(name)), None)


def surroundings(model: str = "") -> Surroundings:
    """Provenance with all CPU flags and what decides the speed of memory; None where it cannot be read."""
    found = provenance(model)
    machine: TimedMachine = {
        **found["machine"],
        "cpu_flags": _field("/proc/cpuinfo", "flags"),
        "cores_allowed": sorted(cores()),
        "last_level_cache_bytes": last_level_cache(),
        "governor": _read(_CPU / "cpufreq/scaling_governor"),
        "max_khz": _read(_CPU / "cpufreq/scaling_max_freq"),
        "mhz_now": _field("/proc/cpuinfo", "cpu MHz"),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "huge_pages": _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }
    return {
        "versions": found["versions"],
        "machine": machine,
        "model": found["model"],
        "seed": found["seed"],
        "command": found["command"],
        "created": found["created"],
    }
