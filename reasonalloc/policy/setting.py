"""Settings of parts: dataclass fields that carry the range of their values."""

from __future__ import annotations

import numbers
import operator
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; whole: integers, odd: odd ones."""

    least: float
    most: float
    whole: bool = False
    odd: bool = False

    def check(self, name: str, value: object) -> int | float:
        """The value as a Python number; ValueError if it is none or lies outside. Integers stay integers."""
        result = self._number(name, value)
        if not self.least <= result <= self.most:
            raise ValueError(f"{name} must lie between {self.least} and {self.most}, got {value}")
        if self.odd and result % 2 == 0:
            raise ValueError(f"{name} must be odd, got {value}")
        return result

    def _number(self, name: str, value: Any) -> int | float:
        if not isinstance(value, (bool, np.bool_)):
            try:
                return operator.index(value)  # integers of numpy and torch too
            except TypeError:
                if not self.whole and isinstance(value, numbers.Real):
                    return float(value)
        raise ValueError(f"{name} must be a {'whole number' if self.whole else 'number'}, got {value!r}")


class Flag:
    """True or False."""

    def check(self, name: str, value: object) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name} must be True or False, got {value!r}")
        return bool(value)


class FileName:
    """A text or a path."""

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, (str, Path)):
            raise ValueError(f"{name} must be the name of a file, got {value!r}")
        return str(value)


@dataclass(frozen=True)
class Choice:
    """One of some texts."""

    texts: tuple[str, ...]

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str) or value not in self.texts:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, self.texts))}, got {value!r}")
        return value


def choice(default: T, *texts: str) -> T:
    """A dataclass field that is one of some texts, or None where that is the default."""
    return field(default=default, metadata={"allowed": Choice(texts)})


def setting(default: T, least: float, most: float, *, whole: bool = False, odd: bool = False) -> T:
    """A dataclass field that `check_settings` holds to a range."""
    return field(default=default, metadata={"allowed": Range(least, most, whole, odd)})


def file_name() -> str:
    """A dataclass field that names a file, none by default."""
    return field(default="", metadata={"allowed": FileName()})


def flag(default: bool) -> bool:
    """A dataclass field that is True or False."""
    return field(default=default, metadata={"allowed": Flag()})


def same_as(owner: type, name: str, default: Any = MISSING) -> Any:
    """A field with the range of a part's setting, and its default where none is given. None, as default, is allowed."""
    setting_field: Field[Any] = next(f for f in fields(owner) if f.name == name)
    return field(default=setting_field.default if default is MISSING else default, metadata=setting_field.metadata)


def check_settings(owner: DataclassInstance) -> None:
    """Checks every setting of a frozen dataclass and makes Python numbers of numpy's; ValueError for a bad one."""
    for f in fields(owner):
        allowed, value = f.metadata.get("allowed"), getattr(owner, f.name)
        if allowed is not None and not (value is None and f.default is None):
            object.__setattr__(owner, f.name, allowed.check(f.name, value))
