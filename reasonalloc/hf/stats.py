"""The figures of a cache, as `ReasonAllocCache.stats()` gives them."""

from __future__ import annotations

from typing import Any, NoReturn, TypedDict


class Seconds(TypedDict):
    """Time in the cache since it was made or reset. cut: score, route and evict with everything around them."""

    score: float
    route: float
    evict: float
    attend: float
    cut: float


class CacheStats(dict[str, Any]):
    """A read-only mapping whose keys are attributes too: `stats["bytes"]` is `stats.bytes`.

    Lists are `[batch][L][H]` over the layers named in `layers`.

    method: of the config. layers: those with a budget, by their number in the model. bytes, peak_bytes, mean_bytes:
    pages in use, now, at most, and on the average over steps. reserved_bytes: the same with free pages.
    other_bytes: of layers with a sliding window. backends: what computes, and on which device. slots: kept now.
    budgets: of the last cut, the even share before it, -1 without limit. ratio: slots kept / slots of a full cache.
    evicted: slots in all; recalls: how many of them came back. cold_slots: evicted tokens that still can, [] without
    recall; cold_bytes: what they take in host memory, which is in none of the other bytes; while a cut scores them they
    are in pages too, which peak_bytes has. steps: forward passes. routings: cuts. lost_mass: attention of the newest
    query (with recall, over the cold tokens too) on what did not stay, mean over cuts of a head. wave: where the layer
    wave comes from. closed: why the cache cannot be used, or None.
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
    recalls: int
    cold_bytes: int
    cold_slots: list[list[list[int]]]
    steps: int
    routings: int
    seconds: Seconds
    lost_mass: float
    wave: str
    closed: str | None

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"a cache's figures have no {name!r}; there are {', '.join(self)}")
        return self[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __repr__(self) -> str:
        cuts = f"{self['routings']:,} cuts evicted {self['evicted']:,} slots" if self["routings"] else "nothing evicted"
        now, peak = (self[x] / 2**20 for x in ("bytes", "peak_bytes"))
        return (
            f"<CacheStats {self['method']}: {now:.2f} MiB now, {peak:.2f} at its peak;"
            f" {self['ratio']:.1%} of a full cache's slots; {self['steps']:,} steps, {cuts}>"
        )

    def __reduce__(self) -> tuple[type[CacheStats], tuple[dict[str, Any]]]:
        return CacheStats, (dict(self),)

    def _refuse(self, *args: object, **options: object) -> NoReturn:
        raise TypeError("a cache's figures are what they were when asked for; dict(stats) makes a copy to change")

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = clear = pop = popitem = setdefault = _refuse

    def __setattr__(self, name: str, value: object) -> NoReturn:
        self._refuse()
