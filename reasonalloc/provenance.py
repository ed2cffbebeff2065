"""What a figure needs beside it to be believed later: versions, machine, command."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NotRequired, TypedDict

from reasonalloc import _core
from reasonalloc.protocols import Model


class Machine(TypedDict):
    """cpu_flags: those that the kernels may use. cpus: of the machine; threads: of torch. instruction_set: of the
    kernels. gpus: those that torch can use."""

    system: str
    processor: str
    cpu_flags: str
    cpus: int | None
    threads: int
    instruction_set: str
    gpus: list[str]


class Place(TypedDict):
    """versions: by package. devices: that a model lies on. revision: its commit, of one of the Hub."""

    versions: dict[str, str]
    machine: Machine
    devices: NotRequired[list[str]]
    revision: NotRequired[str]


class Provenance(Place):
    """model: its label. created: time, UTC."""

    model: str
    seed: int | None
    command: str
    created: str


def _cpu(field: str, otherwise: str = "") -> str:
    """A line of /proc/cpuinfo; `otherwise` where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return otherwise
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith(field)), otherwise)


def _gpus() -> list[str]:
    """Those that torch can use."""
    import torch

    try:
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except RuntimeError:  # a driver that is too old
        return []


def provenance(model: str = "", seed: int | None = None) -> Provenance:
    """JSON-ready: versions, machine, model label, seed, command line and time (UTC)."""
    return {
        **_here(),
        "model": model,
        "seed": seed,
        "command": " ".join(sys.argv),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def place(model: Model) -> Place:
    """Where a model computes: versions, machine, and the devices that it lies on."""
    found: Place = {**_here(), "devices": sorted({str(x.device) for x in model.parameters()})}
    if revision := getattr(model.config, "_commit_hash", None):
        found["revision"] = str(revision)
    return found


def _here() -> Place:
    import torch  # late: a place is put into words without it

    return {
        "versions": {
            "reasonalloc": version("reasonalloc"),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
        },
        "machine": {
            "system": platform.platform(),
            "processor": _cpu("model name", platform.processor()),
            "cpu_flags": " ".join(f for f in _cpu("flags").split() if f.startswith(("avx", "fma", "f16c", "amx"))),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instruction_set": _core.isa(),
            "gpus": _gpus(),
        },
    }


def in_words(where: Place) -> str:
    """A `place`, or a `provenance`, in a line."""
    machine, versions = where["machine"], where["versions"]
    parts = [machine["processor"], f"{machine['cpus']} CPUs"]
    devices = where.get("devices", ["cpu"])
    if devices != ["cpu"]:
        parts.append(f"model on {', '.join(devices)} ({', '.join(machine['gpus'])})")
    return ", ".join([*parts, *(f"{name} {versions[name]}" for name in ("torch", "transformers"))])
