"""How much a cache keeps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reasonalloc.policy.setting import check_settings, setting

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_MOST_BYTES = 2**63 - 1


def parse_bytes(value: int | str) -> int:
    """ "512MiB", "2GB" or a number as bytes; ValueError for anything else and for more than 2**63 - 1."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or match[2] not in _UNITS:
        raise ValueError(
            f"max_bytes must be a number or like '512MiB' (units {', '.join(list(_UNITS)[1:])}), got {value!r}"
        )
    size = float(match[1]) * _UNITS[match[2]]
    if size > _MOST_BYTES:
        raise ValueError(f"max_bytes must be at most {_MOST_BYTES}, got {value!r}")
    return int(size)


@dataclass(frozen=True)
class Size:
    """Exactly one of three, or none of them for a cache without limit.

    budget: slots for each KV head, the mean over heads and layers. ratio: the same as a share of the tokens that a row
    has seen. max_bytes: the pages of all rows, layers and heads together.
    """

    budget: int | None = setting(None, 1, 2**31 - 1, whole=True)
    ratio: float | None = setting(None, 0, 1)
    max_bytes: int | str | None = None

    def __post_init__(self) -> None:
        if len(self.given()) > 1:
            raise ValueError(f"give exactly one of budget, ratio and max_bytes, got {', '.join(self.given())}")
        check_settings(self)
        if self.ratio == 0:
            raise ValueError("ratio must be above 0")
        if self.max_bytes is not None:
            parse_bytes(self.max_bytes)

    def given(self) -> list[str]:
        return [name for name in ("budget", "ratio", "max_bytes") if getattr(self, name) is not None]
