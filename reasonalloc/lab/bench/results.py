"""What the parts of the benchmarks write as JSON, and tables and targets read."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from reasonalloc.lab.bench.kvpress_script import Decoded
from reasonalloc.lab.bench.machine import Surroundings
from reasonalloc.lab.bench.timing import Compared

# Fields whose names no class can spell.
_FromPlace = TypedDict("_FromPlace", {"from": str})
_FromLengths = TypedDict("_FromLengths", {"from": dict[str, int | None]})
_Peer = TypedDict("_Peer", {"SDPA grouped": Compared})


class Result(TypedDict):
    """What all parts have. settings: the options of the run."""

    schema: int
    part: str
    settings: dict[str, object]
    provenance: Surroundings


# ---- kernels ----


class CompressionRow(Compared):
    """cut: "steady", or "first" of a fresh layer. checked: the largest differences from the reference.

    kept_as_published: share of tokens that another form keeps as the published one does.
    """

    keys: str
    dtype: str
    n: int
    cut: str
    kept: int
    checked: dict[str, float]
    kept_as_published: dict[str, float]


class RecallRow(Compared):
    """A cut with `cold` evicted tokens a head that are scored again, by the tier's format. cold_bytes: of the tier."""

    keys: str
    dtype: str
    n: int
    cold: int
    checked: dict[str, float]
    cold_bytes: dict[str, int]


class ScratchRow(TypedDict):
    """bytes: `resident.rise` by contender and cut, "first" or "later"."""

    n: int
    dtype: str
    bytes: dict[str, dict[str, dict[str, int]]]


class ScorerRow(TypedDict):
    """By scorer: seconds of a cut of one layer, and of a step of one token right before it, against "rkv"."""

    dtype: str
    n: int
    errors: dict[str, float]
    cut: Compared
    step: Compared


class AttentionRow(Compared, _FromPlace):
    """from: "memory" or "last-level cache". bytes: that a step reads. roofline: the read bandwidth of the same core."""

    dtype: str
    batch: int
    n: int
    bytes: int
    max_error: float
    roofline_gb_s: float
    roofline_share: dict[str, float]


class ThreadsRow(_Peer):
    """One thread against two. read: reading alone."""

    dtype: str
    batch: int
    n: int
    max_error: float
    ours: Compared
    read: Compared


class GatheringRow(Compared):
    """A decode step that gathers nothing against those that gather a statistic, the peers."""

    dtype: str
    n: int
    max_error: float


class Kernels(Result):
    """no_real_keys: why there are none, or None. core: that it was measured on."""

    shape: dict[str, int]
    runs: int
    no_real_keys: str | None
    compression: list[CompressionRow]
    recall: NotRequired[list[RecallRow]]
    scratch: list[ScratchRow]
    scorers: NotRequired[list[ScorerRow]]
    attention: list[AttentionRow]
    gathering: NotRequired[list[GatheringRow]]
    threads: list[ThreadsRow]
    core: int


# ---- throughput ----


class StepRow(TypedDict):
    """By cache. ratio: how many times as fast one of ours is as each stock cache."""

    batch: int
    length: int
    seconds: dict[str, list[float]]
    step_s: dict[str, float]
    ratio: dict[str, dict[str, float]]
    cache_bytes: dict[str, int]


class CutRow(TypedDict):
    """One interval. spent_s: in the cache, as the seconds of its `stats()`. share: of cutting in the whole time."""

    batch: int
    cache: str
    steps: int
    total_s: float
    spent_s: dict[str, float]
    share: float


class OverheadRow(TypedDict):
    """Microseconds a layer. attend_in_c_us: None for a stock cache."""

    batch: int
    cache: str
    length: int
    steps: int
    update_us: float
    attention_us: float
    attend_in_c_us: float | None
    overhead_us: float
    samples_s: list[float]


class Sampled(TypedDict, total=False):
    """How long a chain's steps take by its length; the seconds around a cut are those of a budget. Nothing where the
    whole chain was decoded."""

    points: list[tuple[float, float]]
    before_cut_s: float
    after_cut_s: float
    cut_step_s: float
    steady_s: float


class Tried(Sampled):
    """A batch that fits."""

    rows: int
    step_s: float
    tokens_per_s: float
    cache_bytes: int


class EqualMemoryRow(TypedDict):
    """best: None where no row fits."""

    chain: int
    cache: str
    fits_rows: int
    tried: list[Tried]
    best: Tried | None


class BreakEvenRow(_FromLengths):
    """from: the length from which on it is faster than each stock cache, None where there is none up to `longest`."""

    cache: str
    longest: int
    points: list[tuple[float, float]]
    peer_points: dict[str, list[tuple[float, float]]]


class _Throughput(Result):
    memory_limit: int
    most_rows: int


class Throughput(_Throughput, total=False):
    """Without what is still to be measured."""

    steps: list[StepRow]
    cuts: list[CutRow]
    overhead: list[OverheadRow]
    whole_chains: bool
    equal_memory: list[EqualMemoryRow]
    break_even: list[BreakEvenRow]


# ---- memory ----


class MemoryRow(TypedDict):
    """Bytes of the process. samples: on the way, by what was counted. stats: of a cache of ours.

    bound_bytes: of budget + interval tokens a head, where there is a budget; *_of_bound: shares of it.
    """

    cache: str
    rows: int
    prompt: int
    tokens: int
    baseline: int
    baseline_tensors: int
    peak: int
    mean: float
    rise_peak: int
    rise_mean: float
    seconds: float
    samples: list[dict[str, int]]
    cache_bytes: int
    stats: NotRequired[dict[str, float]]
    bound_bytes: NotRequired[int]
    held_of_bound: NotRequired[float]
    reserved_of_bound: NotRequired[float]


class Memory(Result):
    """torch_counts: how torch's tensors were counted."""

    torch_counts: str
    results: list[MemoryRow]


# ---- kvpress ----


class KvpressRow(Decoded):
    """who: kvpress, transformers or reasonalloc."""

    who: str
    cache: str


class Kvpress(Result):
    """python: the interpreter that has kvpress, None where there is none."""

    python: str | None
    rows: list[KvpressRow]
