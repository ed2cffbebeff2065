"""Layer budgets chosen by answers: the wave's budgets in several orders, of which the one that answers most is kept.

Successive halving: all orders answer a few problems, the better half twice as many, until two have answered all.
What an order scores on the problems that it was chosen by flatters it: it is measured again on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from statistics import fmean

from reasonalloc.config import Config
from reasonalloc.lab.evaluate.cells import Cell, cell_name
from reasonalloc.lab.evaluate.orders import LOW, demand_of, followed, orders, shares_of
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.tasks import Item
from reasonalloc.policy.wave import WaveProfile


@dataclass(frozen=True)
class Round:
    """problems: that the cells were judged by. scores: of each cell, the mean over these problems, best first."""

    problems: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Tuned:
    """start: the wave as it was. best: the order that was kept, or the start where none answered more."""

    start: Cell
    best: Cell
    rounds: list[Round]


def candidates(config: Config, wave: WaveProfile, count: int, low: float = LOW) -> list[Cell]:
    """The wave's own cell, then at most `count` - 1 others with its budgets in other orders.

    config: a method that follows a wave, with its budget. low: layers whose share of the mean is less keep theirs.
    Raises ValueError where there is nothing to deal.
    """
    start = replace(config, profile=wave)
    part = followed(start)
    shares = shares_of(wave, part)
    found = [Cell(cell_name(start), start)]
    for seed, dealt in islice(orders(shares, shares < low), count - 1):
        profile = replace(wave, demand=demand_of(dealt, part))
        found.append(Cell(f"{found[0].name} order={seed}", replace(start, profile=profile)))
    if len(found) == 1:
        raise ValueError(f"the wave has one order only: fewer than two layers of different shares reach {low:g}")
    return found


def schedule(count: int, problems: int) -> list[tuple[int, int]]:
    """(cells, problems) of each round: half as many cells from round to round, down to two, twice as many problems."""
    sizes = [count]
    while sizes[-1] > 2:
        sizes.append(math.ceil(sizes[-1] / 2))
    return [(size, math.ceil(problems / 2 ** (len(sizes) - 1 - i))) for i, size in enumerate(sizes)]


def mixed(items: Sequence[Item]) -> list[Item]:
    """In turns from each group, so that the first few are of all of them."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return [x for x in chain.from_iterable(zip_longest(*groups.values())) if x is not None]


def tune(study: Study, cells: Sequence[Cell], progress: Callable[[int, int], None] | None = None) -> Tuned:
    """Chooses among the cells, of which the first is the start, by the study's problems.

    The start is in every round. Chains that the folder has are taken from it. progress: that of `Study.run`, by round.
    """
    items, left, rounds = mixed(study.items), list(cells), []
    start = cells[0]
    for size, problems in schedule(len(cells), len(items)):
        study.items = items[:problems]
        left = left[:size]
        here = left if start in left else [start, *left]
        study.run(here, progress)
        scores = {x.name: _score(study, x) for x in here}
        left.sort(key=lambda x: -scores[x.name])  # stable: of equals the one that was ahead before
        rounds.append(Round(problems, dict(sorted(scores.items(), key=lambda x: -x[1]))))
    study.items = items
    last = rounds[-1].scores
    best = left[0] if last[left[0].name] > last[start.name] else start
    return Tuned(start, best, rounds)


def _score(study: Study, cell: Cell) -> float:
    wanted = {x.id for x in study.items}
    return fmean(x.score for x in study.records.by_key.values() if x.cell == cell.name and x.item in wanted)
