"""Backends of the conformance tests: a later one is one entry in BACKENDS. Formats and scorers name themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from reasonalloc import _core

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
    """

    name: str
    isa: str | None = None
    device: str = "cpu"

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
        return _core.Pool(page_format, dim)

    def add_pages(self, pool: _core.Pool, pages: int) -> None:
        """Pages of NaN: nothing may rely on zeros."""
        pool.add_slab(torch.full((pages * pool.page_bytes,), 255, dtype=torch.uint8, device=self.device))

    def tensor(self, x, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.as_tensor(x).to(dtype).to(self.device)


BACKENDS = [Backend(f"cpu-{isa}", isa) for isa in _core.isas()]
