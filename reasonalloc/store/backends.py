"""Which backend keeps the pages of a layer: that of the device where the layer lies, or the CPU's."""

from __future__ import annotations

import os
from importlib import import_module
from typing import NamedTuple

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
    else host memory. scorer: the C scorer that is to run there. Where its backend lacks it, "model" is refused, and
    None is host memory with a note that says so. Raises ValueError for a backend that cannot be had.
    """
    backend = _backend_for(device, place)
    if scorer is None or backend.supports(scorer):
        return backend
    if place == "model":
        raise ValueError(
            f"the backend {backend.name} has no scorer {scorer!r}: with device=None or device='cpu' the cache lies in"
            " host memory, where every scorer runs"
        )
    return IN_HOST_MEMORY._replace(note=f"{backend.name} has no scorer {scorer!r}")


def operators_backend() -> object | None:
    """The capsule of the backend that computes torch's operators on CUDA tensors; None where it was not built."""
    name = "cuda-emulated" if os.environ.get(VARIABLE) == "cuda-emulated" else "cuda"
    if name == "cuda" and (torch.version.cuda is None or torch.version.hip):
        return None
    try:
        return _capsule(name)
    except ImportError:
        return None


def _capsule(name: str) -> object:
    """What a backend's module gives `_core`; ImportError where it was not built, or with another `_core`."""
    capsule: object = import_module(_MODULES[name]).backend
    try:
        _core.supports("recency", capsule)
    except ValueError as error:  # the capsule has another name
        raise ImportError(f"it is of another build of reasonalloc, {capsule}") from error
    return capsule


def _backend_for(device: torch.device, place: str | None) -> Backend:
    wish = os.environ.get(VARIABLE, "")
    if wish and wish not in BACKENDS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(BACKENDS)}, got {wish!r}")
    if place == "cpu":
        return IN_HOST_MEMORY
    name = wish or ("cuda" if place == "model" else "cpu")
    if name == "cpu" or (name == "cuda" and device.type == "cpu"):
        return IN_HOST_MEMORY
    if name == "cuda" and (device.type != "cuda" or torch.version.hip):
        raise ValueError(f"there is no backend for {device}: caches lie in host memory or on CUDA devices")
    try:
        capsule = _capsule(name)
    except ImportError as error:
        raise ValueError(f"{_MODULES[name]} was not built (REASONALLOC_CUDA=1 builds it with nvcc): {error}") from error
    return Backend(name, device if name == "cuda" else CPU, capsule)
