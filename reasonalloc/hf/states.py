"""What a layer is given: queries, keys and values, checked and brought to where the pages are."""

from __future__ import annotations

import torch
from torch.nn import Module

from reasonalloc import _core
from reasonalloc.protocols import Model
from reasonalloc.store.backends import Backend, backend_for
from reasonalloc.store.pages import DTYPES

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class States:
    """Prepares what the attention modules of one model give its cache. Shapes that the C core checks are left to it.

    heads, head_dim: of the keys that the cache holds, 0 while it is empty. place: where it lies, as `Config.device`.
    scorer: the C scorer that must run there.
    """

    def __init__(self, model: Model, place: str | None = None, scorer: str | None = None) -> None:
        self.model, self.place, self.scorer = model, place, scorer
        self._own_modules: set[int] = set()  # ids of those that have asked for attention
        self._backends: dict[torch.device, Backend] = {}
        self.clear()

    def clear(self) -> None:
        """The cache is empty."""
        self._backends.clear()
        self.heads = self.head_dim = 0
        self._dtype: torch.dtype | None = None  # where all of them can be taken as they come
        self._is_cpu = True

    def check(self, layer: int, module: Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Raises ValueError for what the layer cannot be given, and TypeError for its dtype."""
        wrong = next((x.dtype for x in (query, key, value) if x.dtype not in DTYPES), None)
        if wrong is not None:
            raise TypeError(f"the cache holds float32, bfloat16 and float16, got {wrong}")
        if value.shape[:3] != key.shape[:3]:
            raise ValueError(
                f"keys {list(key.shape)} and values {list(value.shape)} must have one shape, but for the head size"
            )
        heads, head_dim = key.shape[1], max(key.shape[3], value.shape[3])
        if head_dim > _core.MAX_HEAD_DIM:
            raise ValueError(f"head sizes up to {_core.MAX_HEAD_DIM} are supported, got {head_dim}")
        if self.heads and (heads, head_dim) != (self.heads, self.head_dim):
            raise ValueError(
                f"layer {layer} is given keys {list(key.shape)}, but the cache holds {self.heads} heads of size"
                f" {self.head_dim}"
            )
        if id(module) not in self._own_modules:
            if not any(each is module for each in self.model.modules()):
                raise ValueError(
                    f"the cache was made for a {type(self.model).__name__} and is used by another model, of the same"
                    f" shape: its {type(module).__name__} is not part of the first"
                )
            self._own_modules.add(id(module))

    def hold(self, given: Three, states: Three) -> None:
        """The cache holds its first tokens: what was given, and what that became."""
        _, key, value = states
        self.heads, self.head_dim, self._is_cpu = key.shape[1], key.shape[3], key.is_cpu
        self._dtype = value.dtype if all(x is y for x, y in zip(given, states, strict=True)) else None

    def prepare(self, layer: int, module: Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Three:
        """The three where the layer's pages are, of one dtype and size, each token's numbers in one piece."""
        # As the ones before; in another autocast the values would have another dtype. The core takes keys of any.
        if (
            query.dtype is value.dtype is self._dtype
            and query.is_cpu is self._is_cpu
            and id(module) in self._own_modules
        ):
            return in_rows(query, key, value)
        self.check(layer, module, query, key, value)
        states = one_size(*one_dtype(query, key, value))
        return in_rows(*(in_host_memory(*states) if self.backend(key).capsule is None else states))

    def backend(self, key: torch.Tensor) -> Backend:
        """Where the pages of a layer are whose keys are these."""
        found = self._backends.get(key.device)
        if found is None:
            found = self._backends[key.device] = backend_for(key.device, self.place, self.scorer)
        return found


def copied(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Three:
    """From an accelerator, in one piece: each copy waits for the device."""
    parts = torch.cat([query, key, value], 1).cpu()
    first, second = query.shape[1], query.shape[1] + key.shape[1]
    return parts[:, :first], parts[:, first:second], parts[:, second:]


def in_host_memory(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Three:
    """The three in host memory."""
    return (query, key, value) if query.is_cpu else copied(query, key, value)


def in_rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Three:
    """The three, each token's numbers in one piece."""
    if query.is_contiguous() and key.is_contiguous() and value.is_contiguous():  # asked first, since it costs less
        return query, key, value
    if query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        return query, key, value
    return query.contiguous(), key.contiguous(), value.contiguous()


def one_dtype(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Three:
    """The three as attention computes with them: in autocast's dtype, else the values'. Rotary embeddings kept in
    float32 leave queries and keys wider than the values."""
    dtype = value.dtype
    if torch.is_autocast_enabled(value.device.type):
        dtype = torch.get_autocast_dtype(value.device.type)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def one_size(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Three:
    """The three with zeros up to the larger head size: a page's keys and values have one. No logit changes."""
    if key.shape[3] == value.shape[3]:
        return query, key, value
    size = max(key.shape[3], value.shape[3])
    query, key, value = (torch.nn.functional.pad(x, (0, size - x.shape[3])) for x in (query, key, value))
    return query, key, value
