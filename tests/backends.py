"""Backends of the conformance tests: a later one is one entry in BACKENDS. Formats and scorers name themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import pytest
import torch
from _pytest.mark import ParameterSet

from reasonalloc import _core

# The CUDA backend's kernels on the CPU, which `make test` builds, and on a GPU, which `make cuda` builds.
MODULES: dict[str, ModuleType | None] = {}
for _name in ("_cuda_emulated", "_cuda"):
    try:
        MODULES[_name] = import_module(f"reasonalloc.{_name}")
    except ImportError:
        MODULES[_name] = None

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Backend:
    """One that computes, in one of its ways.

    Parameters
    ----------
    isa
        Instruction set; None where there is no choice.
    device
        Where its pages, tokens and outputs lie.
    module
        That of a backend other than the CPU's, which keeps lists of its own and does not wait: what it finds wrong in
        tokens it tells later.
    effort
        Share of a long test's repetitions that it is given.
    """

    name: str
    isa: str | None = None
    device: str = "cpu"
    module: ModuleType | None = None
    effort: float = 1

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Computes for the length of a `with`."""
        before = _core.isa()
        _core.set_isa(self.isa or before)
        try:
            yield
        finally:
            _core.set_isa(before)

    def pool(self, page_format: str, dim: int) -> _core.Pool:
        return _core.Pool(page_format, dim, self.module and self.module.backend)

    def supports(self, scorer: str) -> bool:
        return _core.supports(scorer, self.module and self.module.backend)

    def add_pages(self, pool: _core.Pool, pages: int) -> None:
        """Pages of NaN: nothing may rely on zeros."""
        pool.add_slab(torch.full((pages * pool.page_bytes,), 255, dtype=torch.uint8, device=self.device))

    def tensor(self, x, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.as_tensor(x).to(dtype).to(self.device)

    def sinks(self, x):
        """Logits [Hq] of attention sinks as a step takes them."""
        return x if x is None or self.module is None else torch.as_tensor(x, device=self.device)

    def allocations(self) -> int:
        """Of memory, since the start."""
        return _core.allocations() + (self.module.allocations() if self.module else 0)


BACKENDS = [Backend(f"cpu-{isa}", isa) for isa in _core.isas()]
if MODULES["_cuda_emulated"] is not None:
    BACKENDS.append(Backend("cuda-emulated", module=MODULES["_cuda_emulated"], effort=0.1))
if MODULES["_cuda"] is not None and torch.cuda.is_available():
    BACKENDS.append(Backend("cuda", device="cuda", module=MODULES["_cuda"]))


def as_parameters(backends: list[Backend]) -> list[ParameterSet]:
    """For pytest: those on a GPU are marked so."""
    return [pytest.param(b, id=b.name, marks=[pytest.mark.gpu] if b.device == "cuda" else []) for b in backends]
