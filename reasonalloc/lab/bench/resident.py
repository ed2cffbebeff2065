"""Resident memory of this process as the kernel counts it (Linux), and work in a fresh process."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensor

T = TypeVar("T")


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise NotImplementedError(
            f"resident memory is read from /proc/self/status, which is not there: {error}"
        ) from error
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field + ":"))


def resident() -> int:
    """Bytes resident now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Most bytes resident since the start or `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """`peak_resident` counts from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def give_back() -> None:
    """Collects garbage and hands the C heap's free memory back to the system, so that it is not counted or reused."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def rise(work: Callable[[], object]) -> dict[str, int]:
    """Bytes by which resident memory rose at most while `work` ran, and what stays of them afterwards."""
    give_back()
    before = resident()
    reset_peak()
    result = work()
    peak = peak_resident()
    del result
    give_back()
    return {"peak_bytes": max(peak - before, 0), "kept_bytes": max(resident() - before, 0)}


def tensor_bytes() -> int:
    """Bytes of all live CPU tensors, each storage once: torch keeps no such count for the CPU."""
    storages: dict[int, int] = {}
    for each in gc.get_objects():
        if not issubclass(type(each), torch.Tensor) or issubclass(type(each), FakeTensor):
            continue
        if each.device.type == "cpu" and each.layout == torch.strided:
            storage = each.untyped_storage()
            try:
                storages[storage.data_ptr()] = storage.nbytes()
            except RuntimeError:  # a compiler's, which holds no data
                continue
    return sum(storages.values())


def in_fresh_process(function: Callable[..., T], **arguments: object) -> T:
    """Result of a function of a module, run in a new interpreter. MemoryError if the process was killed."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, **arguments).result()
        except BrokenProcessPool as error:
            raise MemoryError(f"the process of {function.__name__} ended early; was it killed for memory?") from error
