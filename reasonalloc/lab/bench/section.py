"""How cells of the report's tables are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reasonalloc.lab.table import Section

__all__ = ["Section", "mb", "ms", "names_in", "thousands", "times"]


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds < 0.1 else f"{seconds * 1e3:.1f}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"


def thousands(number: int) -> str:
    return f"{number:,}"


def names_in(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """The names of all contenders, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))
