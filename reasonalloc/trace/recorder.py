"""Keeping the cuts of a cache while it works, and making a trace of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc.config import Config
from reasonalloc.files import Json
from reasonalloc.fingerprint import digest
from reasonalloc.policy.observers import CutView
from reasonalloc.policy.policy import Policy
from reasonalloc.protocols import Tokenizer
from reasonalloc.provenance import provenance
from reasonalloc.trace.compact import narrowest
from reasonalloc.trace.file import QUANTILES, Trace
from reasonalloc.trace.pieces import pieces

Positions = npt.NDArray[np.int32]
Ids: TypeAlias = torch.Tensor | npt.ArrayLike


@dataclass(frozen=True)
class Cut:
    """One cut of one layer, by its order. budgets, lost: [H]; quantiles: [H, Q]; gone: positions that went, by head."""

    layer: int
    tokens: int
    budgets: npt.NDArray[np.int64]
    lost: npt.NDArray[np.float64]
    quantiles: npt.NDArray[np.float32]
    gone: tuple[Positions, ...]


class Recorder:
    """An observer that keeps what traces need of every cut, by row. A cut is kept once, so rows share them."""

    def __init__(self, rows: int) -> None:
        self.cuts: list[list[Cut]] = [[] for _ in range(rows)]

    def __deepcopy__(self, memo: dict[int, object]) -> Recorder:
        twin = Recorder(0)
        twin.cuts = [list(row) for row in self.cuts]
        return twin

    def __call__(self, cut: CutView) -> None:
        quantiles = np.stack([_quantiles(x) for x in cut.scores])
        gone = tuple(np.array(x) for x in cut.evicted)
        recorded = Cut(cut.order, cut.tokens, np.array(cut.budgets), np.array(cut.lost), quantiles, gone)
        self.cuts[cut.row].append(recorded)

    def arrays(self, heads: int) -> dict[str, npt.NDArray[Any]]:
        """All C cuts of all rows. places: [C, 3] row, layer, tokens; budgets, lost, counts: [C, H]; quantiles:
        [C, H, Q]; gone: [sum of counts] positions that went."""
        every = [(row, cut) for row, cuts in enumerate(self.cuts) for cut in cuts]
        shape = (len(every), heads)
        counts = [[len(x) for x in cut.gone] for _, cut in every]
        return {
            "places": np.array([(row, cut.layer, cut.tokens) for row, cut in every], np.int64).reshape(-1, 3),
            "budgets": np.array([cut.budgets for _, cut in every], np.int64).reshape(shape),
            "lost": np.array([cut.lost for _, cut in every], np.float64).reshape(shape),
            "counts": np.array(counts, np.int64).reshape(shape),
            "quantiles": np.array([cut.quantiles for _, cut in every], np.float32).reshape(*shape, len(QUANTILES)),
            "gone": np.concatenate([np.zeros(0, np.int32), *(x for _, cut in every for x in cut.gone)]),
        }

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Has kept what `arrays` gave."""
        heads = arrays["counts"].shape[1]
        gone = np.split(arrays["gone"], np.cumsum(arrays["counts"].reshape(-1))[:-1])
        for i, (row, layer, tokens) in enumerate(arrays["places"].tolist()):
            budgets, lost, quantiles = (arrays[name][i] for name in ("budgets", "lost", "quantiles"))
            positions = tuple(gone[i * heads : (i + 1) * heads])
            self.cuts[row].append(Cut(layer, tokens, budgets, lost, quantiles, positions))

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        """Row i becomes row source[i]."""
        self.cuts = [list(self.cuts[i]) for i in source]


def _quantiles(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not len(scores):
        return np.full(len(QUANTILES), np.nan, np.float32)
    places = np.array(QUANTILES) * (len(scores) - 1)  # np.quantile's, at a fraction of its overhead
    return np.asarray(np.interp(places, np.arange(len(scores)), np.sort(scores)), np.float32)


@dataclass(frozen=True)
class Recorded:
    """What a trace says besides its cuts. layers: their numbers in the model. heads: KV heads of a layer. tokens,
    prompt: of the row and of its prompt. model: its shape, `fingerprint`; model_id: what the trace calls it."""

    layers: tuple[int, ...]
    heads: int
    tokens: int
    prompt: int
    config: Config
    policy: Policy
    model: Json
    model_id: str


def trace(cuts: Sequence[Cut], ids: Ids, tokenizer: Tokenizer | None, of: Recorded) -> Trace:
    """The trace of one row. ids, tokenizer: as of `ReasonAllocCache.trace`."""
    given = _checked(ids, of.tokens)
    moments, numbers = _numbered(cuts)
    depth = len(of.layers)
    gone = np.zeros((depth, of.heads, of.tokens), np.int64)
    budgets = np.full((len(moments), depth, of.heads), -1, np.int64)
    lost = np.full((len(moments), depth, of.heads), np.nan, np.float32)
    quantiles = np.full((len(moments), depth, of.heads, len(QUANTILES)), np.nan, np.float32)
    for number, cut in zip(numbers, cuts, strict=True):
        budgets[number, cut.layer], lost[number, cut.layer] = cut.budgets, cut.lost
        quantiles[number, cut.layer] = cut.quantiles
        for h, positions in enumerate(cut.gone):
            gone[cut.layer, h, positions] = number + 1
    texts = pieces(tokenizer, given.tolist()) if tokenizer is not None else None
    settings = json.loads(json.dumps(of.config.settings(), default=str))
    vocabulary = tokenizer.get_vocab() if tokenizer is not None and hasattr(tokenizer, "get_vocab") else {}
    return Trace(
        ids=given,
        prompt=of.prompt,
        cuts=np.array(moments, np.int64),
        gone=narrowest(gone),
        budgets=budgets,
        lost=lost,
        quantiles=quantiles,
        layers=of.layers,
        window=of.policy.schedule.window,
        interval=of.policy.schedule.interval,
        settings=settings,
        model=of.model,
        source={
            "model": of.model_id,
            "config": digest(of.model),
            "tokenizer": digest(sorted(vocabulary.items())) if tokenizer is not None else None,
            "settings": digest(settings),
            "scorer": of.policy.scorer.name,
        },
        text=None if texts is None else "".join(texts),
        ends=np.zeros(0, np.int64) if texts is None else np.cumsum([len(x) for x in texts], dtype=np.int64),
        provenance=provenance(of.model_id),
    )


def _checked(ids: Ids, tokens: int) -> npt.NDArray[np.int64]:
    """The ids of the tokens that the cache was given."""
    given = np.asarray(ids.detach().cpu() if isinstance(ids, torch.Tensor) else ids)
    if given.ndim == 2 and len(given) == 1:
        given = given[0]
    if given.ndim != 1 or given.dtype.kind not in "iu" or len(given) - tokens not in (0, 1):
        raise ValueError(
            f"ids must be the row's {tokens} token ids without padding, and one more if the last was never given to the"
            f" cache (generate's); got shape {list(given.shape)} of {given.dtype}"
        )
    return given[:tokens].astype(np.int64)


def _numbered(cuts: Sequence[Cut]) -> tuple[list[int], list[int]]:
    """(tokens at each cut of the row, for each layer's cut its number): layers cut in one step are one cut."""
    tokens: list[int] = []
    numbers = []
    for cut in cuts:
        if not tokens or tokens[-1] != cut.tokens:
            tokens.append(cut.tokens)
        numbers.append(len(tokens) - 1)
    return tokens, numbers
