"""Storage: how pages hold keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from reasonalloc import _core
from reasonalloc.policy.registry import Part, Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Storage(Part):
    """Base of all storages."""

    kind: ClassVar[str] = "storage"

    def page_format(self, dtype: torch.dtype) -> str:
        """Name of the page format for keys and values that come in this dtype; TypeError if there is none."""
        raise NotImplementedError

    def page_bytes(self, dtype: torch.dtype, head_dim: int) -> int:
        """Bytes of a page of PAGE_TOKENS tokens of one KV head, keys and values."""
        return _core.Pool(self.page_format(dtype), head_dim).page_bytes


STORAGES: Registry[Storage] = Registry("storage")


@STORAGES.enter("dense")
@dataclass(frozen=True)
class Dense(Storage):
    """Keys and values as they come, in the model's dtype."""

    def page_format(self, dtype: torch.dtype) -> str:
        from reasonalloc.store.pages import DTYPES  # late: it needs torch

        if dtype not in DTYPES:
            raise TypeError(f"the cache holds float32, bfloat16 and float16, got {dtype}")
        return DTYPES[dtype]
