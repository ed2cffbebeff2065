"""Taking note of cuts while a cache works, and making a trace of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reasonalloc.policy.wave import digest, fingerprint
from reasonalloc.provenance import provenance
from reasonalloc.trace.compact import narrowest
from reasonalloc.trace.file import QUANTILES, Trace
from reasonalloc.trace.pieces import pieces

if TYPE_CHECKING:
    from reasonalloc.hf.cache import ReasonAllocCache
    from reasonalloc.hf.layer import RaggedLayer

Positions = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cut:
    """One cut of one layer of one row. budgets, lost: [H]; quantiles: [H, Q]; gone: positions that each head let go."""

    layer: int
    seen: int
    budgets: npt.NDArray[np.int64]
    lost: npt.NDArray[np.float64]
    quantiles: npt.NDArray[np.float32]
    gone: tuple[Positions, ...]


class Recorder:
    """What the `Cutter` of a recording cache reports. A cut is noted once and never changed, so rows share them."""

    def __init__(self, rows: int) -> None:
        self.cuts: list[list[Cut]] = [[] for _ in range(rows)]
        # Of each row, by layer: tokens seen at its last cut, and the positions that each head held after it.
        self._held: list[dict[int, tuple[int, list[Positions]]]] = [{} for _ in range(rows)]

    def note(self, layer: RaggedLayer, row: int, scores: Sequence[Any], budgets: Any, lost: Any) -> None:
        """A row was cut. scores: of each head's older tokens before the cut; budgets, lost: [H]."""
        core = layer.held
        seen = core.tokens(row)
        after = [np.frombuffer(core.positions(row, h), np.int32) for h in range(layer.heads)]
        since, before = self._held[row].get(layer.order, (0, [np.zeros(0, np.int32)] * layer.heads))
        new = np.arange(since, seen, dtype=np.int32)
        gone = tuple(_without(np.concatenate([b, new]), a, seen) for a, b in zip(after, before, strict=True))
        self._held[row][layer.order] = seen, after
        quantiles = np.stack([_quantiles(x) for x in scores])
        self.cuts[row].append(Cut(layer.order, seen, np.array(budgets), np.array(lost), quantiles, gone))

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        """Row i becomes row source[i]."""
        self.cuts = [list(self.cuts[i]) for i in source]
        self._held = [dict(self._held[i]) for i in source]


def _without(positions: Positions, kept: Positions, seen: int) -> Positions:
    gone = np.ones(seen, np.bool_)
    gone[kept] = False
    return positions[gone[positions]]


def _quantiles(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not len(scores):
        return np.full(len(QUANTILES), np.nan, np.float32)
    places = np.array(QUANTILES) * (len(scores) - 1)  # np.quantile's, at a fraction of its overhead
    return np.asarray(np.interp(places, np.arange(len(scores)), np.sort(scores)), np.float32)


def trace(cache: ReasonAllocCache, recorder: Recorder, ids: Any, tokenizer: Any, row: int, model_id: str) -> Trace:
    """The trace of one row; see ReasonAllocCache.trace."""
    seen = cache.ragged[0].held.tokens(row)
    given = _checked(ids, seen)
    cuts, numbers = _numbered(recorder.cuts[row])
    depth, heads = len(cache.ragged), cache.ragged[0].heads
    gone = np.zeros((depth, heads, seen), np.int64)
    budgets = np.full((len(cuts), depth, heads), -1, np.int64)
    lost = np.full((len(cuts), depth, heads), np.nan, np.float32)
    quantiles = np.full((len(cuts), depth, heads, len(QUANTILES)), np.nan, np.float32)
    for number, cut in zip(numbers, recorder.cuts[row], strict=True):
        budgets[number, cut.layer], lost[number, cut.layer] = cut.budgets, cut.lost
        quantiles[number, cut.layer] = cut.quantiles
        for h, positions in enumerate(cut.gone):
            gone[cut.layer, h, positions] = number + 1
    own = pieces(tokenizer, given.tolist()) if tokenizer is not None else None
    config = cache.config
    settings = {**vars(config), "options": dict(config.options)}
    settings["profile"] = asdict(config.profile) if config.profile is not None else None
    settings = json.loads(json.dumps(settings, default=str))
    label = model_id or getattr(cache.model.config, "_name_or_path", "") or type(cache.model).__name__
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    shape = fingerprint(cache.model)
    return Trace(
        ids=given,
        prompt=int(cache.cutter.prompt[row]),
        cuts=np.array(cuts, np.int64),
        gone=narrowest(gone),
        budgets=budgets,
        lost=lost,
        quantiles=quantiles,
        layers=tuple(layer.index for layer in cache.ragged),
        window=config.window,
        interval=cache.method.interval,
        settings=settings,
        model=shape,
        source={
            "model": label,
            "config": digest(shape),
            "tokenizer": digest(sorted(vocabulary.items())) if tokenizer is not None else None,
            "settings": digest(settings),
            "scorer": config.method if cache.method.scores_in_python else cache.method.scorer,
        },
        text=None if own is None else "".join(own),
        ends=np.zeros(0, np.int64) if own is None else np.cumsum([len(x) for x in own], dtype=np.int64),
        provenance=provenance(label),
    )


def _checked(ids: Any, seen: int) -> npt.NDArray[np.int64]:
    """The `seen` token ids that the cache was given."""
    given = np.asarray(ids.detach().cpu() if hasattr(ids, "detach") else ids)
    if given.ndim == 2 and len(given) == 1:
        given = given[0]
    if given.ndim != 1 or given.dtype.kind not in "iu" or len(given) - seen not in (0, 1):
        raise ValueError(
            f"ids must be the row's {seen} token ids without padding, and one more if the last was never given to the"
            f" cache (generate's); got shape {list(given.shape)} of {given.dtype}"
        )
    return given[:seen].astype(np.int64)


def _numbered(cuts: Sequence[Cut]) -> tuple[list[int], list[int]]:
    """(tokens seen at each cut of the row, for each layer's cut its number): layers cut in one step are one cut."""
    seen: list[int] = []
    numbers = []
    for cut in cuts:
        if not seen or seen[-1] != cut.seen:
            seen.append(cut.seen)
        numbers.append(len(seen) - 1)
    return seen, numbers
