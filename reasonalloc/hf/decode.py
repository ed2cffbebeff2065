"""Batched generation that reports each row as it ends, every row with random numbers of its own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers.cache_utils import Cache

from reasonalloc.config import Config
from reasonalloc.hf.attention import using
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.graph import DecodeGraph, why_not
from reasonalloc.hf.picker import Picker
from reasonalloc.hf.tokens import left_padded
from reasonalloc.protocols import Model

RUNNING_SHARE = 0.75  # of the rows of a graph: when fewer are running it is made anew without the others


@dataclass(frozen=True)
class Sampling:
    """temperature 0: greedy. max_new_tokens: of a chain. seed: with the row's key it fixes all its random numbers."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be a number from 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie above 0 and at most at 1, got {self.top_p}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass
class Chain:
    """One finished row. finish: "stop" (end token) or "length". mean_bytes, peak_bytes: of its pages, over its steps.

    slots: mean of a KV head at the end. seconds: its share of each step (a step's time / rows in it), prefill included.
    """

    key: str
    prompt_tokens: int
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    mean_bytes: float = 0.0
    peak_bytes: int = 0
    slots: float = 0.0
    seconds: float = 0.0
    steps: int = 0

    def add(self, token: int, size: int, seconds: float) -> None:
        """One step. size: bytes of its pages after it."""
        self.ids.append(token)
        self.steps += 1
        self.seconds += seconds
        self.mean_bytes += (size - self.mean_bytes) / self.steps
        self.peak_bytes = max(self.peak_bytes, size)


# Settings of a generation config that change which token is chosen, with the values that change nothing.
_SAMPLING = {"top_k": 0, "min_p": 0, "top_h": 1, "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0}
_CHOOSING = {
    "num_beams": 1, "repetition_penalty": 1, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0,
    "min_length": 0, "min_new_tokens": 0, "bad_words_ids": [], "suppress_tokens": [], "begin_suppress_tokens": [],
    "sequence_bias": {}, "guidance_scale": 1, "exponential_decay_length_penalty": None, "watermarking_config": None,
}  # fmt: skip


def not_applied(model: Model, sampling: Sampling) -> dict[str, object]:
    """What a model's generation config says about the choice of tokens that `generate` here does not follow."""
    config = getattr(model, "generation_config", None)
    neutral = _CHOOSING | (_SAMPLING if sampling.temperature else {})
    config_values = {name: getattr(config, name, None) for name in neutral}
    return {name: x for name, x in config_values.items() if x is not None and x != neutral[name]}


def warn_of(ignored: Mapping[str, object]) -> None:
    """Says what `not_applied` found, if anything."""
    if ignored:
        settings = ", ".join(f"{key}={value}" for key, value in ignored.items())
        warnings.warn(f"not applied of the model's generation config: {settings}", stacklevel=3)


class DecodeBatch:
    """Rows that go through a model with a cache together: their prompts, padded on the left, then what follows.

    cache: a transformers Cache, empty. prompts: token ids of each row, none empty. graphs: steps after the prompt are
    CUDA graphs; a warning says why where none can be made.
    """

    def __init__(
        self,
        model: Model,
        cache: Cache,
        prompts: Sequence[Sequence[int] | torch.Tensor],
        pad: int = 0,
        graphs: bool = False,
    ) -> None:
        self.model, self.cache, self.graphs = model, cache, graphs
        self._graph: DecodeGraph | None = None
        if isinstance(cache, ReasonAllocCache):
            cache.prompt_columns = 0
        self.tokens, self.mask = (x.to(model.device) for x in left_padded(prompts, pad))
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)

    def forward(self) -> torch.Tensor:
        """Feeds what is new of each row: logits [rows, V] of the token that follows it."""
        if self._graph is not None:
            return self._graph.step(self.tokens)
        # A list, not the number 1: the slice that a number becomes does not lie in one piece, and torch then copies
        # the output matrix for every row of the batch. Nor a tensor: accelerate moves those to the first GPU.
        with torch.no_grad():
            logits: torch.Tensor = self.model(
                input_ids=self.tokens, attention_mask=self.mask, position_ids=self.positions,
                **cache_argument(self.cache), use_cache=True, logits_to_keep=[self.tokens.shape[1] - 1],
            ).logits[:, -1]  # fmt: skip
        if self.graphs:
            self._begin_graphs()
        return logits

    def _begin_graphs(self) -> None:
        self.graphs = False
        ours = isinstance(self.cache, ReasonAllocCache)
        reason = why_not(self.cache) if ours else f"they are of a ReasonAllocCache, not of {type(self.cache).__name__}"
        if reason:
            warnings.warn(f"no CUDA graphs: {reason}", stacklevel=2)
        else:
            self._graph = DecodeGraph(self.model, self.cache)

    def append(self, tokens: torch.Tensor) -> None:
        """The token [rows] that each row is given next."""
        self.tokens = tokens.to(self.mask.device)[:, None]
        if self._graph is not None:
            return  # it knows where rows are, and the cache hides the prompts' padding
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.positions = self.positions[:, -1:] + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        index = torch.tensor(rows, dtype=torch.long)
        if rows:
            self.cache.reorder_cache(index)  # not every layer of transformers has batch_select_indices
        index = index.to(self.mask.device)
        self.tokens, self.mask, self.positions = self.tokens[index], self.mask[index], self.positions[index]

    def outgrown(self, running: int) -> bool:
        """Whether rows that have ended are better taken out. A graph is made anew for another number of rows, which
        costs more than some rows that go on for nothing."""
        rows = len(self.tokens)
        return running < rows if self._graph is None else running <= rows * RUNNING_SHARE


def generate(
    model: Model,
    config: Config,
    prompts: Sequence[tuple[str, Sequence[int]]],
    stop: frozenset[int],
    sampling: Sampling,
    pad: int = 0,
    progress: Callable[[int], None] | None = None,
    graphs: bool = False,
) -> Iterator[Chain]:
    """Chains of a batch of prompts, each given out as soon as it ends; its row then leaves the batch.

    prompts: (key, token ids), keys unique; shorter ones are padded on the left. stop: as `tokens.ends` gives.
    progress: called with the number of tokens made in a step. graphs: decode steps are CUDA graphs; a warning says why
    where none can be made. Raises ValueError for an empty prompt.
    """
    empty = [key for key, ids in prompts if not len(ids)]
    if empty:
        raise ValueError(f"prompt {empty[0]!r} has no token")
    if prompts:
        with using(model):
            cache = ReasonAllocCache(model, config)
            yield from chains(model, cache, prompts, stop, sampling, pad, progress, graphs=graphs)


def chains(
    model: Model,
    cache: Cache,
    prompts: Sequence[tuple[str, Sequence[int]]],
    stop: frozenset[int],
    sampling: Sampling,
    pad: int = 0,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[torch.Tensor, Sequence[str], Sequence[int]], None] | None = None,
    graphs: bool = False,
) -> Iterator[Chain]:
    """As `generate`, with any empty cache of transformers; bytes and slots are those of a ReasonAllocCache, else 0.

    watch: called at each step with the logits [rows, V], the rows' keys and the tokens that were chosen.
    """
    batch = DecodeBatch(model, cache, [ids for _, ids in prompts], pad, graphs)
    yield from decode(batch, prompts, stop, sampling, progress, watch)


def decode(
    batch: DecodeBatch,
    prompts: Sequence[tuple[str, Sequence[int]]],
    stop: frozenset[int],
    sampling: Sampling,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[torch.Tensor, Sequence[str], Sequence[int]], None] | None = None,
) -> Iterator[Chain]:
    """As `chains`, of a batch that is given: new, of these prompts."""
    picker = Picker(sampling.temperature, sampling.top_p, sampling.seed)
    ours = batch.cache if isinstance(batch.cache, ReasonAllocCache) else None
    rows = [Chain(key, len(ids)) for key, ids in prompts]  # of the batch; with graphs also some that have ended
    numbers = [picker.numbers(row.key) for row in rows]
    while rows:
        start = time.perf_counter()
        logits = batch.forward()
        picked = picker.pick(logits, numbers)
        running = [i for i, row in enumerate(rows) if not row.finish]
        if watch:
            seen = logits if len(running) == len(rows) else logits[running]
            watch(seen, [rows[i].key for i in running], [picked[i] for i in running])
        sizes = ours.page_bytes_by_row() if ours is not None else np.zeros(len(rows), np.int64)
        seconds, ended = (time.perf_counter() - start) / len(running), []
        for i in running:
            row, token = rows[i], picked[i]
            row.add(token, int(sizes[i]), seconds)
            if token in stop:
                row.finish = "stop"
            elif len(row.ids) >= sampling.max_new_tokens:
                row.finish = "length"
            if row.finish:
                ended.append(i)
        if progress:
            progress(len(running))
        if ended:
            slots = ours.slots().mean((1, 2)) if ours is not None else np.zeros(len(rows))
            for i in ended:
                rows[i].slots = float(slots[i])
                yield rows[i]
            if batch.outgrown(len(running) - len(ended)):
                on = [i for i in running if not rows[i].finish]
                rows, numbers, picked = [rows[i] for i in on], [numbers[i] for i in on], [picked[i] for i in on]
                batch.keep(on)
        batch.append(torch.tensor(picked, dtype=torch.long))
