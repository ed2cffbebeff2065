"""What a running benchmark tells, line by line, and hands over on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Log = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]


def silent(line: str) -> None:
    """For callers that do not listen."""


def discard(result: dict[str, Any]) -> None:
    """For callers that want the result at the end only."""
