"""Methods by name, and registration of methods and parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from reasonalloc.methods.base import Method
from reasonalloc.policy.heads import HEADS, HeadAllocator
from reasonalloc.policy.layers import LAYERS, LayerAllocator
from reasonalloc.policy.layers_by_scores import LayersByScores
from reasonalloc.policy.registry import Registry
from reasonalloc.policy.scorers import SCORERS, Scorer
from reasonalloc.policy.storage import STORAGES, Storage

METHODS: Registry[Method] = Registry("method")

C = TypeVar("C", bound=type)


def register(name: str) -> Callable[[C], C]:
    """Class decorator: enters a frozen dataclass under a name that `Config` takes.

    A `Method` is named by Config(method=...), and lends its parts to others; a `Scorer`, `LayerAllocator` or
    `HeadAllocator` is named by Config(scorer=...), (layers=...) or (heads=...), or by the fields of a method. Raises
    ValueError for any other class, for a part without its function, and for a name that is taken.
    """

    def enter(cls: C) -> C:
        if not (isinstance(cls, type) and issubclass(cls, (Method, Scorer, LayerAllocator, HeadAllocator, Storage))):
            raise ValueError(
                f"{cls!r} is not a subclass of reasonalloc.Method, Scorer, LayerAllocator or HeadAllocator"
            )
        if issubclass(cls, Method):
            METHODS.add(name, cls)
            cls.name = name
            return cls
        for base, function, table in _PARTS:
            if issubclass(cls, base):
                if getattr(cls, function) is getattr(base, function) and not hasattr(cls, "core"):
                    raise ValueError(f"{cls!r} has no function {function!r}")
                table.add(name, cls)
                cls.registered = name
        return cls

    if not isinstance(name, str) or not name:
        raise ValueError(f"register takes the method's name, as in @register('mine'), got {name!r}")
    return enter


_PARTS: tuple[tuple[type, str, Registry[Any]], ...] = (
    (Scorer, "score", SCORERS),
    (LayerAllocator, "totals", LAYERS),
    (LayersByScores, "shares", LAYERS),
    (HeadAllocator, "shares", HEADS),
    (Storage, "page_format", STORAGES),
)


def methods() -> list[str]:
    """Names that Config(method=...) takes."""
    return list(METHODS)
