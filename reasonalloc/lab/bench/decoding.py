"""A model that decodes with one of the caches, filled with real keys and values instead of by reading a long text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from reasonalloc.config import Config
from reasonalloc.hf.attention import activate, attention_forward
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.bench.settings import INTERVAL
from reasonalloc.lab.bench.states import States, text_ids
from reasonalloc.lab.bench.states import read as read_states
from reasonalloc.lab.bench.timing import timed
from reasonalloc.protocols import Model, Tokenizer

STOCK = {"dynamic": "DynamicCache", "static": "StaticCache"}
_FIRST = 16  # tokens that start a cache of ours by the ordinary way


@dataclass(frozen=True)
class Subject:
    """One model twice, sharing its weights: with stock attention and with ours. states: what it saw of one text."""

    stock: Model
    ours: Model
    states: Sequence[States]
    label: str

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        return sum(2 * x.keys.shape[0] * x.keys.shape[2] * x.keys.element_size() for x in self.states)


def subject(model: Model, tokenizer: Tokenizer, label: str, tokens: int, ids: torch.Tensor | None = None) -> Subject:
    """model: as loaded. tokens: how long a text it reads; longer caches are filled with it again and again."""
    if model.config._attn_implementation != "sdpa":
        model.set_attn_implementation("sdpa")
    states = read_states(model, text_ids(tokenizer, tokens) if ids is None else ids)
    shared = {id(x): x for x in [*model.parameters(), *model.buffers()]}
    ours = copy.deepcopy(model, shared)
    activate(ours)
    return Subject(model, ours, states, label)


def config_of(name: str) -> Config | None:
    """ "full", or a method with its budget as in "reasonalloc-256"; None for a stock cache."""
    if name in STOCK:
        return None
    method, _, budget = name.rpartition("-")
    if budget.isdecimal() and method:
        return Config(method=method, budget=int(budget))
    return Config(method=name)


class Decoder:
    """`rows` sequences that are decoded together, with a cache by name ("dynamic", "static", "full", "rkv-256").

    room: tokens a row that a static cache is made for.
    """

    def __init__(self, subject: Subject, name: str, rows: int, room: int) -> None:
        self.subject, self.name, self.rows, self.length = subject, name, rows, 0
        config = config_of(name)
        self.model = subject.stock if config is None else subject.ours
        self.cache: Cache
        if name == "static":
            self.cache = StaticCache(config=self.model.config, max_cache_len=room)
        elif name == "dynamic":
            self.cache = DynamicCache(config=self.model.config)
        else:
            self.cache = ReasonAllocCache(self.model, config or Config(method="full"))
        self.budgeted = config is not None and name != "full"
        self.modules = {m.layer_idx: m for n, m in self.model.named_modules() if n.endswith("self_attn")}
        self.tokens = torch.ones(rows, 1, dtype=torch.long)

    # ---- filling ----

    def fill(self, length: int) -> None:
        """Goes on to `length` tokens a row, all rows the same ones, each in memory of its own.

        Stock caches and our full cache get the keys and values as they are. A cache with a budget gets them by chunks
        of an interval through attention, and is cut as in decoding; at most the newest 4 x (budget + interval) are
        given, since what was evicted long ago does not matter to the time of a step.
        """
        begin = self.length
        if self.budgeted:
            budget = self.cache.config.budget or 0
            begin = max(begin, length - 4 * (budget + INTERVAL))
            while begin < length:
                count = min(INTERVAL, length - begin)
                self._through_attention(begin, count)
                self.cache.slots()  # a look at it ends the prompt: from here on it is cut as in decoding
                begin += count
        elif self.name == "full":
            if begin == 0 and length:
                begin = min(_FIRST, length)
                self._through_attention(0, begin)
            if begin < length:
                self._into_layers(begin, length - begin)
        elif begin < length:
            self._into_stock(begin, length - begin)
        self.length = max(length, self.length)

    def _part(self, layer: int, begin: int, count: int) -> tuple[torch.Tensor, ...]:
        part = self.subject.states[layer].part(begin, count)
        return tuple(x[None].expand(self.rows, -1, -1, -1) for x in (part.queries, part.keys, part.values))

    def _through_attention(self, begin: int, count: int) -> None:
        """As a model's attention modules do it."""
        with torch.no_grad():
            for i, module in self.modules.items():
                query, key, value = self._part(i, begin, count)
                new_key, new_value = self.cache.update(key, value, i)
                attention_forward(module, query, new_key, new_value, None, scaling=module.scaling)

    def _into_layers(self, begin: int, count: int) -> None:
        """Into the pages alone: attention of thousands of tokens would take minutes."""
        for layer in self.cache.ragged:
            query, key, value = self._part(layer.index, begin, count)
            self.cache.pool.step(layer.core, query, key, value, None, 1.0)
            layer.length += count

    def _into_stock(self, begin: int, count: int) -> None:
        place = {"cache_position": torch.arange(begin, begin + count)}  # asked for up to transformers 5.3
        for i in self.modules:
            _, key, value = self._part(i, begin, count)
            self.cache.update(key, value, i, place)

    # ---- decoding ----

    def step(self) -> float:
        """Seconds of one decode step of all rows, the choice of the next tokens included."""
        seconds = timed(self._step)
        self.length += 1
        return seconds

    def _step(self) -> None:
        with torch.no_grad():
            out = self.model(input_ids=self.tokens, **cache_argument(self.cache), use_cache=True, logits_to_keep=1)
            self.tokens = out.logits[:, -1:].argmax(-1)

    def bytes(self) -> int:
        """Of the cache: stored keys and values; for ours, the most so far."""
        if isinstance(self.cache, ReasonAllocCache):
            return int(self.cache.stats()["peak_bytes"])
        return sum(x.numel() * x.element_size() for layer in self.cache.layers for x in (layer.keys, layer.values))

    def seconds(self) -> dict[str, float]:
        """Time spent inside our cache so far, by kind."""
        return dict(self.cache.stats()["seconds"])
