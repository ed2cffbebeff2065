"""The figures of a cache, as `ReasonAllocCache.stats()` gives them."""

from __future__ import annotations

from typing import TypedDict


class Seconds(TypedDict):
    """Time in the cache since it was made or reset. cut: score, route and evict with everything around them."""

    score: float
    route: float
    evict: float
    attend: float
    cut: float


class CacheStats(TypedDict):
    """Lists are [batch][L][H] over the layers named in `layers`.

    method: of the config. layers: those with a budget, by their number in the model. bytes, peak_bytes, mean_bytes:
    pages in use, now, at most, and on the average over steps. reserved_bytes: the same with free pages.
    other_bytes: of layers with a sliding window. backends: what computes, and on which device. slots: kept now.
    budgets: of the last cut, the even share before it, -1 without limit. ratio: slots kept / slots of a full cache.
    evicted: slots in all. steps: forward passes. routings: cuts. lost_mass: attention of the newest query on what
    was evicted, mean over cuts of a head. wave: where the layer wave comes from. closed: why the cache cannot be
    used, or None.
    """

    method: str
    layers: list[int]
    bytes: int
    peak_bytes: int
    mean_bytes: float
    reserved_bytes: int
    backends: list[str]
    other_bytes: int
    slots: list[list[list[int]]]
    budgets: list[list[list[int]]]
    ratio: float
    evicted: int
    steps: int
    routings: int
    seconds: Seconds
    lost_mass: float
    wave: str
    closed: str | None
