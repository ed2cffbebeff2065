"""Which backend keeps the pages of a layer: that of the device where the layer lies, or the CPU's."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, NamedTuple

import torch

from reasonalloc import _core

CPU = torch.device("cpu")
VARIABLE = "REASONALLOC_BACKEND"  # names one of BACKENDS for all layers
BACKENDS = ("cpu", "cuda", "cuda-emulated")
_MODULES = {"cuda": "reasonalloc._cuda", "cuda-emulated": "reasonalloc._cuda_emulated"}


class Backend(NamedTuple):
    """A backend and the device that its pages lie on.

    capsule: what `_core.Pool` takes; None: the CPU's, which works in the host's memory and at once. The others keep
    their own lists, and the host waits for them only where it must know what heads hold. note: why it is not the one
    that was asked for.
    """

    name: str
    device: torch.device
    capsule: object | None = None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name} on {self.device}" + (f" ({self.note})" if self.note else "")

    def supports(self, scorer: str) -> bool:
        """Whether it has a C scorer and gathers the statistics that this needs."""
        return _core.supports(scorer, self.capsule)


IN_HOST_MEMORY = Backend("cpu", CPU)


def backend_for(device: torch.device, place: str | None = None, scorer: str | None = None) -> Backend:
    """Of tensors on a device.

    place: "cpu" for host memory, wherever they lie; "model" for the device's own; None: as REASONALLOC_BACKEND says,
    else the device's own, or host memory with a note that says why it is not. scorer: the C scorer that is to run
    there. Raises ValueError where a backend is named that cannot be had, or with "model" lacks the scorer.
    """
    name = _name_for(device, place)
    if name == "cpu":
        return IN_HOST_MEMORY
    reason = _why_not(name, device)
    if reason and (place is not None or os.environ.get(VARIABLE)):
        raise ValueError(reason)
    if reason:
        return IN_HOST_MEMORY._replace(note=reason)
    backend = Backend(name, device if name == "cuda" else CPU, _module(name).backend)
    if scorer is None or backend.supports(scorer):
        return backend
    reason = f"the backend {name} has no scorer {scorer!r}"
    if place is not None:
        raise ValueError(
            f"{reason}: with device=None or device='cpu' the cache lies in host memory, where every scorer runs"
        )
    return IN_HOST_MEMORY._replace(note=reason)


def operators_backend() -> object | None:
    """The capsule of the backend that computes torch's operators on CUDA tensors; None where it was not built."""
    name = "cuda-emulated" if os.environ.get(VARIABLE) == "cuda-emulated" else "cuda"
    if name == "cuda" and (torch.version.cuda is None or torch.version.hip):
        return None
    try:
        capsule: object = _module(name).backend
    except ImportError:
        return None
    return capsule


def _module(name: str) -> Any:
    """The module of a backend; ImportError where it was not built, or with another `_core`."""
    module = import_module(_MODULES[name])
    try:
        _core.supports("recency", module.backend)
    except ValueError as error:  # the capsule has another name
        raise ImportError(f"it is of another build of reasonalloc, {module.backend}") from error
    return module


def _name_for(device: torch.device, place: str | None) -> str:
    """Of BACKENDS, the one that is wished for."""
    wish = os.environ.get(VARIABLE, "")
    if wish and wish not in BACKENDS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(BACKENDS)}, got {wish!r}")
    if place == "cpu":
        return "cpu"
    if not wish:
        wish = "cuda" if place == "model" or device.type == "cuda" else "cpu"
    return "cpu" if wish == "cuda" and device.type == "cpu" else wish


def _why_not(name: str, device: torch.device) -> str:
    """Why a backend cannot keep what lies on a device; empty if it can."""
    if name == "cuda" and (device.type != "cuda" or torch.version.hip):
        return f"there is no backend for {device}: caches lie in host memory or on CUDA devices"
    try:
        module = _module(name)
    except ImportError as error:
        return f"{_MODULES[name]} was not built (REASONALLOC_CUDA=1 builds it with nvcc): {error}"
    why = module.why_not_on(device.index or 0) if name == "cuda" else ""
    return f"{_MODULES[name]} does not run on {device}: {why}" if why else ""
