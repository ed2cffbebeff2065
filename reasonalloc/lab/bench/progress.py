"""What a running benchmark tells, line by line, and hands over on the way."""

from __future__ import annotations

from collections.abc import Callable

from reasonalloc.lab.bench.results import Result

Log = Callable[[str], None]
Save = Callable[[Result], None]


def silent(line: str) -> None:
    """For callers that do not listen."""


def discard(result: Result) -> None:
    """For callers that want the result at the end only."""
