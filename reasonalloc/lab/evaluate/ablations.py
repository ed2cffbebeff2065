"""Ablations by name: each a question, and the cells whose accuracies answer it."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from reasonalloc.config import Config
from reasonalloc.lab.evaluate.cells import Cell, cell_name
from reasonalloc.lab.evaluate.orders import LOW, Shares, deal, demand_of, followed, shares_of
from reasonalloc.lab.evaluate.waves import GivenWave
from reasonalloc.lab.tasks import REGISTRY
from reasonalloc.policy.wave import WaveProfile


class Measured(Protocol):
    """Where waves come from: `Waves`, or what stands in for it."""

    task: str

    def get(self, count: int = ..., rho: float = ..., task: str | None = ...) -> WaveProfile: ...


@dataclass(frozen=True)
class Around:
    """The point that an ablation varies: ReasonAlloc at one budget, with the task's offline wave. settings: fields of
    `Config` that every cell has but where it varies them; the full cache keeps to those that change no answer of it. A
    profile among them, or that of a calibration, is the wave, and `waves` measures none."""

    waves: Measured
    budget: int = 256
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = Config(**{"budget": self.budget, **self.settings}).profile
        if given is not None:
            object.__setattr__(self, "waves", GivenWave(self.waves.task, given))

    def cell(
        self, method: str = "reasonalloc", wave: WaveProfile | None = None, variant: str = "", **changes: Any
    ) -> Cell:
        """variant: what distinguishes it from the plain cell of its method and budget ("" for that one)."""
        base: dict[str, Any] = {"budget": self.budget, **self.settings}
        if method == "full":
            base = {key: value for key, value in base.items() if key in ("interval", "keep_prompt")}
        config = Config(**{"method": method, **base, **changes})
        if config.resolve().needs_wave:
            config = replace(config, profile=wave or self.waves.get())
        return Cell(f"{cell_name(config)} {variant}".strip(), config)

    def with_demand(self, demand: list[float], variant: str) -> Cell:
        """The wave alone, with other demands of the layers."""
        wave = replace(self.waves.get(), demand=tuple(demand))
        return self.cell("reasonalloc-wave", wave, f"wave={variant}")

    def varied(self, field: str, values: list[Any]) -> list[Cell]:
        """ReasonAlloc with each value of a field; the default among them is the plain cell."""
        plain = self.cell()
        value = getattr(plain.config, field)
        default = plain.config.resolve().interval if field == "interval" and value is None else value
        return [plain if x == default else self.cell(variant=f"{field}={x:g}", **{field: x}) for x in values]


@dataclass(frozen=True)
class Ablation:
    """question: what it asks. cells: of the answer; full cache and R-KV are measured beside them."""

    name: str
    question: str
    cells: Callable[[Around], list[Cell]]


ABLATIONS: dict[str, Ablation] = {}


def _enter(name: str, question: str) -> Callable[[Callable[[Around], list[Cell]]], Callable[[Around], list[Cell]]]:
    def enter(cells: Callable[[Around], list[Cell]]) -> Callable[[Around], list[Cell]]:
        ABLATIONS[name] = Ablation(name, question, cells)
        return cells

    return enter


_VALUES: dict[str, list[Any]] = {}  # of each field that an ablation varies


def _enter_field(field: str, question: str, values: list[Any], name: str | None = None) -> None:
    _VALUES[field] = values
    _enter(name or field, question)(lambda around: around.varied(field, values))


_enter_field("alpha", "How much should importance weigh against redundancy?", [0.0, 0.1, 0.3, 0.5, 1.0])
_enter_field("interval", "How often should the cache be cut?", [32, 64, 128, 256])
_enter_field("mu", "How high a floor does head routing need?", [0.0, 0.25, 0.5, 1.0])
_enter_field("gamma", "How strongly should the wave and the routing be followed?", [0.0, 0.25, 0.5, 1.0])
_enter_field("window", "How many of the newest tokens should always stay, and score the others?", [4, 8, 16, 32])
_enter_field("kernel", "How many neighbours should a token's importance be the largest of?", [1, 3, 7, 15])
_enter_field("smoothing", "Do scores that remember earlier cuts choose better?", [0.0, 0.5, 0.8], name="ema")


@_enter("spans", "Do tokens answer better when whole spans of them stay or go?")
def _spans(around: Around) -> list[Cell]:
    # Spans of one token are R-KV, which stands beside them.
    made = [around.cell("spans")]
    made += [around.cell("spans", variant=f"span={x}", options={"span": x}) for x in (4, 8, 32, 64)]
    return [*made, around.cell("spans", variant="pool=max", options={"pool": "max"})]


@_enter("head-gamma", "How strongly should the routing of heads be followed, whatever the layers do?")
def _head_gamma(around: Around) -> list[Cell]:
    values = (0.0, 0.25, 1.0, 2.0)
    cells = [around.cell(variant=f"head-gamma={x:g}", options={"head_gamma": x}) for x in values]
    return [*cells[:2], around.cell(), *cells[2:]]


@_enter("head-bounds", "How far may heads be from the mean of their layer, whatever the layers do?")
def _head_bounds(around: Around) -> list[Cell]:
    bounds = ((0.5, 1.5), (0.1, 3.0), (0.0, 16.0))
    return [
        around.cell(),
        *(around.cell(variant=f"heads={x:g}-to-{y:g}", options={"head_lo": x, "head_hi": y}) for x, y in bounds),
    ]


@_enter("rho", "Does the attention mass that defines a layer's demand matter?")
def _rho(around: Around) -> list[Cell]:
    return [
        around.cell(wave=around.waves.get(rho=rho), variant="" if rho == 0.93 else f"rho={rho:g}")
        for rho in (0.8, 0.93, 0.99)
    ]


@_enter("wave", "Is it the wave, or would any layer budgets do?")
def _wave(around: Around) -> list[Cell]:
    # Without routing: nothing moves slots but the layers' budgets. R-KV has a flat wave, pyramid-rkv PyramidKV's.
    wave = around.waves.get()

    made = [around.cell(x) for x in ("rkv", "reasonalloc-wave", "pyramid-rkv")]
    made.append(around.with_demand(list(wave.demand[::-1]), "reversed"))
    for seed in range(3):
        demand = list(wave.demand)
        random.Random(f"permuted/{seed}").shuffle(demand)
        made.append(around.with_demand(demand, f"permuted-{seed}"))
    return made


@_enter("spared", "What is the wave worth when every layer first has room for the prompt?")
def _spared(around: Around) -> list[Cell]:
    found = []
    for method in ("reasonalloc-wave", "reasonalloc"):
        spared = around.cell(method, variant="prompt=spared", options={"spare_prompt": True})
        found += [around.cell(method), spared]
    return found


PERMUTATIONS = 19  # with the wave itself 20 orders: the best of them by chance is the wave once in 20


@_enter("notch", "Is it the order of the layers, or the few that hold next to nothing of the chain?")
def _notch(around: Around) -> list[Cell]:
    # As "wave", but layers of less than half the mean stay where they are, or are alone, or are made as the others.
    part = followed(around.cell("reasonalloc-wave").config)
    shares = shares_of(around.waves.get(), part)
    low = shares < LOW
    if not low.any():
        raise ValueError(f"the wave leaves no layer less than {LOW:g} of the mean: it has no notch to ask about")

    def of(shares: Shares, variant: str) -> Cell:
        return around.with_demand(list(demand_of(shares, part)), variant)

    alone, without = np.where(low, shares, shares[~low].mean()), np.where(low, 1.0, shares)
    made = [around.cell(x) for x in ("rkv", "reasonalloc-wave")]
    made += [of(alone, "notch-only"), of(without, "no-notch")]
    return [*made, *(of(deal(shares, low, seed), f"notch-kept-{seed}") for seed in range(PERMUTATIONS))]


@_enter("parts", "Which part helps: layers by the wave, heads by routing, both or neither?")
def _parts(around: Around) -> list[Cell]:
    return [around.cell(x) for x in ("rkv", "reasonalloc-wave", "reasonalloc-route", "reasonalloc")]


@_enter("centred", "What does routing do with R-KV's score as published, whose level depends on a head's slots?")
def _centred(around: Around) -> list[Cell]:
    found = []
    for method in ("reasonalloc-route", "reasonalloc"):
        found += [around.cell(method), around.cell(method, variant="score=as-published", scorer="rkv")]
    return found


@_enter("prompt", "What does it change that the prompt is evicted last?")
def _prompt(around: Around) -> list[Cell]:
    found = []
    for method in ("reasonalloc", "rkv", "snapkv", "streaming", "random"):
        default = around.cell(method).config.resolve().keep_prompt
        variant = "prompt=as-any-text" if default else "prompt=kept"
        found += [around.cell(method), around.cell(method, variant=variant, keep_prompt=not default)]
    return found


@_enter("length", "Do chains grow longer at small budgets?")
def _length(around: Around) -> list[Cell]:
    sizes = sorted({max(32, round(around.budget * x)) for x in (0.5, 0.75, 1, 1.5, 2)})
    return [around.cell(method, budget=x) for method in ("reasonalloc", "rkv") for x in sizes]


@_enter("profile", "How many prompts does the wave need?")
def _profile(around: Around) -> list[Cell]:
    return [
        around.cell(wave=around.waves.get(count), variant="" if count == 4 else f"prompts={count}")
        for count in (1, 2, 4, 8)
    ]


@_enter("transfer", "Does a wave of another task do as well?")
def _transfer(around: Around) -> list[Cell]:
    found = [around.cell()]
    for task, entry in REGISTRY.items():
        if task == around.waves.task or not entry.transfers:
            continue
        try:
            wave = around.waves.get(task=task)
        except ValueError as error:
            if entry.shipped:
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        found.append(around.cell(wave=wave, variant=f"wave={task}"))
    return found


def ablations() -> dict[str, str]:
    """What `reasonalloc ablate NAME` can vary: the question that each asks, by name."""
    return {x.name: x.question for x in ABLATIONS.values()}


def cells_of(ablation: Ablation, around: Around) -> list[Cell]:
    """Its cells after the full cache and R-KV, each once."""
    every = [around.cell("full"), around.cell("rkv"), *ablation.cells(around)]
    return list({x.name: x for x in every}.values())


_DEFAULTS = {"rho": 0.93, "prompts": 4.0, "head-gamma": 0.5}  # of what is no field of `Config`


def varied(cells: Iterable[str]) -> tuple[str, dict[str, float]] | None:
    """The one setting whose number cells of ReasonAlloc vary ("alpha"), and its value in each of them, by name.

    cells: names as `Around.cell` gives them; a plain one has the value of the ablation that no other has, else the
    default. None where no number or several are varied, or the plain one's cannot be told.
    """
    split_names = [x.split() for x in cells if x.split()[0] == "reasonalloc"]
    found: dict[str, float] = {}
    names: set[str] = set()
    for words in split_names:
        name, sign, text = words[-1].partition("=")
        try:
            found[" ".join(words)] = float(text) if sign else math.nan
        except ValueError:
            return None
        names |= {name} if sign else set()
    if len(names) != 1:
        return None
    (name,) = names
    plain = _plain(name, list(found.values()))
    if plain in found.values() and any(math.isnan(x) for x in found.values()):
        return None
    return name, {cell: plain if math.isnan(value) else value for cell, value in found.items()}


def _plain(name: str, named: list[float]) -> float:
    """The value of a cell whose name says none. named: of the others."""
    left = [x for x in _VALUES.get(name, []) if x not in named]
    if len(left) == 1:
        return float(left[0])
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    config = Config(method="reasonalloc", budget=256)
    return float(config.resolve().interval if name == "interval" else getattr(config, name, math.nan))
