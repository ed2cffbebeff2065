"""The pool of pages, grown and trimmed slab by slab; slabs are torch tensors, so torch's reports count them."""

from __future__ import annotations

from typing import Any

import torch

from reasonalloc import _core
from reasonalloc.store.backends import IN_HOST_MEMORY, Backend

PAGE_TOKENS = _core.PAGE_TOKENS
_LEAST_SLAB, _MOST_SLAB = 1 << 20, 1 << 26  # bytes: small caches stay small, large ones grow by a quarter at most

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class PagePool:
    """Pages of one head size and format, on one device. `core` is what `_core.Layer` takes."""

    def __init__(self, page_format: str, head_dim: int, backend: Backend = IN_HOST_MEMORY) -> None:
        self.backend = backend
        self.core = _core.Pool(page_format, head_dim, backend.capsule, backend.device.index or 0)

    def grow(self, pages: int) -> None:
        """Adds at least `pages` pages; MemoryError if the system has no more."""
        while pages > 0:
            # Several slabs rather than a large one: a slab is given back when its last page is empty.
            size = max(min(max(self.reserved_bytes // 4, _LEAST_SLAB), _MOST_SLAB) // self.core.page_bytes, 1)
            try:
                slab = torch.empty(size * self.core.page_bytes, dtype=torch.uint8, device=self.backend.device)
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one of the first
                bytes_ = size * self.core.page_bytes
                raise MemoryError(f"no memory for {bytes_} more bytes of the key-value cache: {error}") from error
            self.core.add_slab(slab)
            pages -= size

    def step(self, layer: _core.Layer, *arguments: Any) -> None:
        """`layer.step` with as many pages as it asks for."""
        while missing := layer.step(*arguments):
            self.grow(missing)

    def sinks(self, logits: torch.Tensor) -> Any:
        """Logits [Hq] of attention sinks as `_core.Layer.step` takes them."""
        on_device = logits.detach().float().to(self.backend.device).contiguous()
        return on_device.numpy() if self.backend.capsule is None else on_device

    def trim(self, keep_free: int) -> None:
        """Moves pages together and gives slabs back to torch as long as `keep_free` pages stay free."""
        while self.core.trim(keep_free) == _core.TRIM_AT_MOST:
            pass

    @property
    def used(self) -> int:
        return self.core.info()[1]

    @property
    def bytes(self) -> int:
        """Bytes of the pages in use."""
        return self.used * self.core.page_bytes

    @property
    def bytes_at_most(self) -> int:
        """The same; on a device as much as they may be, for it is not waited for."""
        return self.core.taken() * self.core.page_bytes

    @property
    def peak_bytes(self) -> int:
        return self.core.info()[3] * self.core.page_bytes

    @property
    def cold_bytes(self) -> int:
        """Bytes of evicted tokens that can come back."""
        return self.core.cold_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all slabs, free pages included."""
        return self.core.info()[0] * self.core.page_bytes
