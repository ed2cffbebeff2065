"""Throughput when every cache gets the same number of bytes, and from what length on a budget is faster."""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from reasonalloc.lab.bench.decoding import Decoder, Subject
from reasonalloc.lab.bench.progress import Log
from reasonalloc.lab.bench.resident import give_back
from reasonalloc.lab.bench.results import BreakEvenRow, EqualMemoryRow, Sampled, Tried
from reasonalloc.lab.bench.settings import INTERVAL
from reasonalloc.store.pages import PAGE_TOKENS

START = 16  # tokens of the prompt that a chain begins with
_AROUND = 4  # steps before and after a cut that are timed


@dataclass
class Curve:
    """Seconds of a step by length of the chain: straight lines between the points, level outside them."""

    points: list[tuple[float, float]] = field(default_factory=list)

    def at(self, length: float) -> float:
        xs = [x for x, _ in self.points]
        i = bisect.bisect_left(xs, length)
        if i == 0:
            return self.points[0][1]
        if i == len(xs):
            return self.points[-1][1]
        (x0, y0), (x1, y1) = self.points[i - 1], self.points[i]
        return y0 + (y1 - y0) * (length - x0) / (x1 - x0)

    def mean(self, length: float) -> float:
        """Mean seconds of a step over a chain from START to `length` tokens (trapezoids)."""
        if length <= START:
            return self.at(length)
        xs = [START, *(x for x, _ in self.points if START < x < length), length]
        area = sum((b - a) * (self.at(a) + self.at(b)) / 2 for a, b in pairwise(xs))
        return area / (length - START)


def _median_step(decoder: Decoder, runs: int) -> float:
    decoder.step()
    return statistics.median(decoder.step() for _ in range(runs))


def _budget_curve(decoder: Decoder, runs: int) -> tuple[Curve, Sampled]:
    """Points at the start and in the steady state, whose mean over an interval is put together from steps right before
    and after a cut and the step that cuts."""
    budget = decoder.cache.config.budget or 0
    decoder.fill(START)
    first = _median_step(decoder, runs)
    decoder.cache.reset()
    decoder.length = 0
    # Three intervals past the budget, less the steps to be timed: the next cut comes _AROUND + 1 steps later.
    full_chunks = -(-budget // INTERVAL) + 2
    decoder.fill(full_chunks * INTERVAL)
    decoder.fill((full_chunks + 1) * INTERVAL - _AROUND - 1)
    before = [decoder.step() for _ in range(_AROUND)]
    cuts = decoder.cache.stats()["routings"]
    cut = decoder.step()
    if decoder.cache.stats()["routings"] != cuts + 1:
        raise RuntimeError(f"{decoder.name}: no cut came where one was to be timed")
    after = [decoder.step() for _ in range(_AROUND)]
    high, low = statistics.median(before), statistics.median(after)
    steady = (high + low) / 2 + (cut - high) / INTERVAL
    curve = Curve([(START, first), (budget + INTERVAL / 2, steady)])
    return curve, {"before_cut_s": high, "after_cut_s": low, "cut_step_s": cut, "steady_s": steady}


def _full_curve(subject: Subject, name: str, rows: int, chain: int, runs: int) -> tuple[Curve, int]:
    """A static cache attends to its whole length from the first token on, so one point is enough for it."""
    decoder = Decoder(subject, name, rows, room=chain)
    lengths = [chain] if name == "static" else [START, chain // 4, chain // 2, 3 * chain // 4, chain]
    curve = Curve()
    for length in sorted({x for x in lengths if x >= START}):
        decoder.fill(max(length - runs - 1, decoder.length))
        curve.points.append((length, _median_step(decoder, runs)))
    return curve, decoder.bytes()


def _whole_chain(subject: Subject, name: str, rows: int, chain: int) -> tuple[float, int]:
    """(mean seconds of a step, cache bytes) of a chain that is really decoded from START to `chain` tokens."""
    decoder = Decoder(subject, name, rows, room=chain)
    decoder.fill(START)
    total = sum(decoder.step() for _ in range(chain - START))
    return total / max(chain - START, 1), decoder.bytes()


def row_bytes(subject: Subject, name: str, chain: int) -> int:
    """Bytes that one row of a chain needs at most; whole pages for ours."""
    if name in ("dynamic", "static"):
        return subject.token_bytes * chain
    if name == "full":
        return subject.token_bytes * (-(-chain // PAGE_TOKENS) * PAGE_TOKENS)
    kept = int(name.rpartition("-")[2]) + INTERVAL
    return subject.token_bytes * min(kept + PAGE_TOKENS, -(-chain // PAGE_TOKENS) * PAGE_TOKENS)


def batches(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    found, batch = [], 1
    while batch < most:
        found.append(batch)
        batch *= 2
    return [*found, most] if most >= 1 else []


def equal_memory(
    subject: Subject,
    names: Sequence[str],
    chains: Sequence[int],
    limit: int,
    most_rows: int,
    runs: int,
    whole_chains: bool,
    log: Log,
) -> Iterator[EqualMemoryRow]:
    """For each cache and chain length: tokens a second at every batch that fits into `limit` bytes of cache.

    most_rows: no batch is larger. Sampled unless `whole_chains`: a step is timed at several lengths (`Curve`).
    """
    budget_curves: dict[tuple[str, int], tuple[Curve, Sampled, int]] = {}
    for chain in chains:
        for name in names:
            fits = limit // row_bytes(subject, name, chain)
            tried: list[Tried] = []
            for rows in batches(min(fits, most_rows)):
                how: Sampled = {}
                if whole_chains:
                    mean, size = _whole_chain(subject, name, rows, chain)
                elif name in ("dynamic", "static", "full"):
                    curve, size = _full_curve(subject, name, rows, chain, runs)
                    mean = curve.mean(chain)
                    how = {"points": curve.points}
                else:
                    if (name, rows) not in budget_curves:
                        decoder = Decoder(subject, name, rows, room=0)
                        curve, steady = _budget_curve(decoder, runs)
                        budget_curves[name, rows] = curve, steady, decoder.bytes()
                    curve, steady, size = budget_curves[name, rows]
                    mean = curve.mean(chain)
                    how = {"points": curve.points, **steady}
                give_back()  # or what one case freed stays with the process while the next is timed
                if size > limit:
                    continue
                tried.append({"rows": rows, **how, "step_s": mean, "tokens_per_s": rows / mean, "cache_bytes": size})
                log(f"chain {chain}, {name}, {rows} rows: {rows / mean:.1f} tokens/s, {size / 1e6:.0f} MB of cache")
            best = max(tried, key=lambda x: x["tokens_per_s"], default=None)
            yield {"chain": chain, "cache": name, "fits_rows": fits, "tried": tried, "best": best}


def break_even(subject: Subject, names: Sequence[str], longest: int, runs: int, log: Log) -> Iterator[BreakEvenRow]:
    """At batch 1: the least length of a chain over which a budget is faster on average than each stock cache; None
    where it is at no length up to `longest`."""
    peers = {"dynamic": _full_curve(subject, "dynamic", 1, longest, runs)[0], "static": Curve()}
    for room in sorted({256, *(longest // x for x in (8, 4, 2, 1))}):
        if START < room <= longest:
            # For a static cache the point is the mean itself: it is made for the chain and attends to all of it.
            peers["static"].points.append((room, _full_curve(subject, "static", 1, room, runs)[0].points[0][1]))
    for name in names:
        ours = _budget_curve(Decoder(subject, name, 1, room=0), runs)[0]
        lengths = {
            peer: next(
                (
                    x
                    for x in range(64, longest + 1, 64)
                    if ours.mean(x) <= (curve.at(x) if peer == "static" else curve.mean(x))
                ),
                None,
            )
            for peer, curve in peers.items()
        }
        log(f"{name}, batch 1: faster from {lengths}")
        yield {
            "cache": name,
            "longest": longest,
            "from": lengths,
            "points": ours.points,
            "peer_points": {k: v.points for k, v in peers.items()},
        }
