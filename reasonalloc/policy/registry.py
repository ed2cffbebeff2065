"""Tables of parts by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from reasonalloc.meant import meant
from reasonalloc.policy.setting import check_settings


@dataclass(frozen=True)
class Part:
    """Base of the parts of a method: a frozen dataclass whose fields are its settings, each with a default."""

    kind: ClassVar[str] = "part"
    registered: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def name(self) -> str:
        """What it is registered as."""
        return self.registered or type(self).__name__

    @property
    def title(self) -> str:
        """What error messages call it."""
        return f"{self.kind} {self.name!r}"


T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of one kind by name. Names are found in any case of letters."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.classes: dict[str, type[T]] = {}

    def __contains__(self, name: object) -> bool:
        return self._own(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.classes))

    def __getitem__(self, name: str) -> type[T]:
        return self.classes[self.own(name)]

    def _own(self, name: object) -> str | None:
        if not isinstance(name, str):
            return None
        if name in self.classes:
            return name
        folded = [own for own in self.classes if own.casefold() == name.casefold()]
        return folded[0] if len(folded) == 1 else None

    def own(self, name: str, others: Registry[Any] | None = None) -> str:
        """The registered name, here or among others; ValueError, with what there is, if there is none."""
        found = self._own(name) or (others._own(name) if others is not None else None)
        if found is not None:
            return found
        if not isinstance(name, str):
            raise ValueError(f"{self.kind} must be a name, got {name!r}")
        every = list(dict.fromkeys([*self, *(others or ())]))
        raise ValueError(f"{self.kind} {name!r} is unknown{meant(name.lower(), every)}; there are {', '.join(every)}")

    def add(self, name: str, cls: type[T]) -> None:
        """Enters a class; one of the same module and name is replaced, as when a notebook's cell runs twice."""
        there = self.classes.get(name, cls)
        if (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{self.kind} {name!r} exists already: {there.__qualname__} of {there.__module__}")
        self.classes[name] = cls

    def enter(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator of the parts that come with the library."""

        def decorate(cls: type[T]) -> type[T]:
            self.add(name, cls)
            cls.registered = name  # type: ignore[attr-defined]
            return cls

        return decorate
