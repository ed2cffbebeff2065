from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reasonalloc.methods.base import Method
from reasonalloc.methods.table import register


@register("full")
@dataclass(frozen=True)
class Full(Method):
    """Keeps every token: the reference."""

    unlimited: ClassVar[bool] = True
