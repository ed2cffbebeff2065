"""Which backend keeps the pages of a layer: that of the device where the layer lies, or the CPU's."""

from __future__ import annotations

import os
from importlib import import_module
from typing import NamedTuple

import torch

CPU = torch.device("cpu")
VARIABLE = "REASONALLOC_BACKEND"  # names one of BACKENDS for all layers
BACKENDS = ("cpu", "cuda", "cuda-emulated")
_MODULES = {"cuda": "reasonalloc._cuda", "cuda-emulated": "reasonalloc._cuda_emulated"}


class Backend(NamedTuple):
    """A backend and the device that its pages lie on.

    capsule: what `_core.Pool` takes; None: the CPU's, which works in the host's memory and at once. The others keep
    their own lists, and the host waits for them only where it must know what heads hold.
    """

    name: str
    device: torch.device
    capsule: object | None = None


IN_HOST_MEMORY = Backend("cpu", CPU)


def backend_for(device: torch.device, in_host_memory: bool = False) -> Backend:
    """Of tensors on a device. in_host_memory: the CPU's, wherever they lie.

    Raises ValueError where REASONALLOC_BACKEND names none that can be had.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish and wish not in BACKENDS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(BACKENDS)}, got {wish!r}")
    if in_host_memory or wish == "cpu":
        return IN_HOST_MEMORY
    name = wish or ("cuda" if device.type == "cuda" and not torch.version.hip else "cpu")
    if name == "cpu" or (name == "cuda" and device.type != "cuda"):
        return IN_HOST_MEMORY
    try:
        capsule = import_module(_MODULES[name]).backend
    except ImportError as error:
        if not wish:  # built without nvcc
            return IN_HOST_MEMORY
        raise ValueError(f"{VARIABLE} is {wish!r}, but {_MODULES[name]} was not built: {error}") from error
    return Backend(name, device if name == "cuda" else CPU, capsule)
