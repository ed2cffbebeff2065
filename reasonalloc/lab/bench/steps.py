"""One decode step of a whole model with each cache, and what of it is cutting and overhead."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.lab.bench.decoding import STOCK, Decoder, Subject
from reasonalloc.lab.bench.results import CutRow, OverheadRow, StepRow
from reasonalloc.lab.bench.settings import INTERVAL
from reasonalloc.lab.bench.timing import take_turns

P = ParamSpec("P")
T = TypeVar("T")

CONTENDERS = ("dynamic", "static", "full", "reasonalloc-256", "rkv-256")


def _turn(decoder: Decoder, rounds: int) -> Callable[[], float]:
    """One step; with a budget as many as make a whole interval over all rounds, of which the mean counts."""
    count = math.ceil(INTERVAL / rounds) if decoder.budgeted else 1
    return lambda: statistics.fmean(decoder.step() for _ in range(count))


def step_times(
    subject: Subject, batches: Sequence[int], lengths: Sequence[int], names: Sequence[str], rounds: int
) -> Iterator[StepRow]:
    """Seconds of a step at each batch and length, contenders in turn. A budget's is the mean over a whole interval."""
    for batch in batches:
        for length in lengths:
            decoders = {name: Decoder(subject, name, batch, room=length + rounds + 1) for name in names}
            for decoder in decoders.values():
                decoder.fill(length)
            samples = take_turns({name: _turn(each, rounds) for name, each in decoders.items()}, rounds)
            step = {
                name: (statistics.fmean if decoders[name].budgeted else statistics.median)(seconds)
                for name, seconds in samples.items()
            }
            yield {
                "batch": batch,
                "length": length,
                "seconds": samples,
                "step_s": step,
                "ratio": {
                    own: {peer: step[peer] / step[own] for peer in STOCK if peer in step}
                    for own in names
                    if own not in STOCK
                },
                "cache_bytes": {name: decoder.bytes() for name, decoder in decoders.items()},
            }


def cut_shares(subject: Subject, batches: Sequence[int], names: Sequence[str]) -> Iterator[CutRow]:
    """Share of the time of decoding that goes to scoring, routing and evicting, over a whole interval."""
    for batch in batches:
        for name in names:
            decoder = Decoder(subject, name, batch, room=0)
            decoder.fill((decoder.cache.config.budget or 0) + 2 * INTERVAL)
            decoder.step()
            before, start = decoder.seconds(), time.perf_counter()
            for _ in range(INTERVAL):
                decoder.step()
            total = time.perf_counter() - start
            spent = {key: value - before[key] for key, value in decoder.seconds().items()}
            yield {
                "batch": batch,
                "cache": name,
                "steps": INTERVAL,
                "total_s": total,
                "spent_s": spent,
                "share": spent["cut"] / total,
            }


def overhead(
    subject: Subject, batches: Sequence[int], names: Sequence[str], length: int, steps: int
) -> Iterator[OverheadRow]:
    """Microseconds a layer that a cache adds to a step: in its `update` and in the attention function.

    For ours without the time that C spends on attention itself; for the stock caches with it, on a nearly empty cache.
    """
    for batch in batches:
        for name in names:
            decoder = Decoder(subject, name, batch, room=2 * length + 2 * steps)
            decoder.fill(length)
            ours = isinstance(decoder.cache, ReasonAllocCache)
            for _ in range(3):
                decoder.step()
            spent = {"update": 0.0, "attention": 0.0}
            before = decoder.seconds() if ours else {}
            samples = []
            with _Watched(decoder, spent):
                for _ in range(steps):
                    last = sum(spent.values())
                    decoder.step()
                    samples.append(sum(spent.values()) - last)
            inside = {key: value - before[key] for key, value in decoder.seconds().items()} if ours else {}
            layers = len(decoder.modules)
            attend = inside.get("attend", 0.0) / steps
            yield {
                "batch": batch,
                "cache": name,
                "length": length,
                "steps": steps,
                "update_us": spent["update"] / steps / layers * 1e6,
                "attention_us": spent["attention"] / steps / layers * 1e6,
                "attend_in_c_us": attend / layers * 1e6 if ours else None,
                "overhead_us": (statistics.median(samples) - attend) / layers * 1e6,
                "samples_s": samples,
            }


class _Watched:
    """Adds up the time inside `cache.update` and the attention function while it is entered."""

    def __init__(self, decoder: Decoder, spent: dict[str, float]) -> None:
        self.cache, self.spent = decoder.cache, spent
        self.key = decoder.model.config._attn_implementation

    def __enter__(self) -> None:
        self.attention = ALL_ATTENTION_FUNCTIONS[self.key]
        self.cache.update = self._watch("update", self.cache.update)
        ALL_ATTENTION_FUNCTIONS.register(self.key, self._watch("attention", self.attention))

    def __exit__(self, *_: object) -> None:
        ALL_ATTENTION_FUNCTIONS.register(self.key, self.attention)
        del self.cache.update  # the class's own again

    def _watch(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.spent[name] += time.perf_counter() - start
            return result

        return watched
