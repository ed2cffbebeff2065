"""What a running benchmark tells, line by line."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def silent(line: str) -> None:
    """For callers that do not listen."""
