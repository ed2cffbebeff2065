"""The cold tier: evicted tokens that are scored again at each cut and can win their slots back."""

from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.policy.setting import check_settings, choice, setting


@dataclass(frozen=True)
class Cold:
    """Where a cut's evicted tokens go instead of away: host memory, beside each layer's pages.

    cold_slots: how many each KV head keeps there, the best by score at the cut that evicts them; None: all.
    cold_format: "same" as in pages, or "int8": 8-bit integers of which 32 share a power of two (MXINT8, Open Compute
    Project's Microscaling Formats v1.0), half of bfloat16's bytes. What came back from it goes again without loss.
    """

    cold_slots: int | None = setting(None, 0, 2**31 - 1, whole=True)
    cold_format: str = choice("same", "same", "int8")

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def limit(self) -> int:
        """As `_core.Layer.keep_cold` takes it."""
        return -1 if self.cold_slots is None else self.cold_slots
