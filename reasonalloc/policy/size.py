"""How much a cache keeps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reasonalloc.policy.setting import check_settings, setting

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MOST_BYTES = 2**63 - 1


def parse_bytes(value: int | str) -> int:
    """ "512MiB", "2GB" or a number as bytes; ValueError for anything else and for more than 2**63 - 1.

    K, M, G and T are powers of 1000, Ki, Mi, Gi and Ti of 1024; the B may be left out, and case does not matter.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(value), re.IGNORECASE)
    if not match or (match[3] and not match[2]):
        raise ValueError(
            "max_bytes must be a number of bytes or like '512MiB' (units KB, MB, GB, TB of 1000, KiB, MiB, GiB, TiB of"
            f" 1024), got {value!r}"
        )
    size = float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].lower()]
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
