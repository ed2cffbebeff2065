"""Fidelity: how far a compressed cache moves a model's next-token distribution from the full cache's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import torch
from rich.table import Table

from reasonalloc.config import Config, parse_bytes
from reasonalloc.fields import build
from reasonalloc.files import Json, read_saved, replace_text
from reasonalloc.hf.attention import using
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.lab.evaluate.forcing import forced_log_probs, full_log_probs
from reasonalloc.lab.evaluate.statistics import Measure, bootstrap, picks
from reasonalloc.lab.evaluate.texts import Text
from reasonalloc.lab.table import Section
from reasonalloc.protocols import Model

SCHEMA = 1

# What is measured of each text, each a mean over its tokens. bytes and slots: of the compressed cache.
_Metric = Literal["nll", "excess_nll", "kl", "agreement", "mean_bytes", "peak_bytes", "slots_ratio"]
METRICS: tuple[_Metric, ...] = get_args(_Metric)


class _Figures(TypedDict):
    id: str
    tokens: int
    nll: float
    excess_nll: float
    kl: float
    agreement: float
    mean_bytes: float
    peak_bytes: float
    slots_ratio: float


@dataclass(frozen=True)
class Point:
    """One method at one budget (slots of a KV head), ratio or max_bytes; all None for the full cache.

    nll: negative log-likelihood of the reference text, nats a token; excess_nll: the same less the full cache's.
    kl: KL(full || compressed), nats a token. agreement: share of tokens where both rank the same token first.
    mean_bytes, peak_bytes: of the cache over a text. slots_ratio: slots kept / a full cache's, at the text's end.
    problems: the same figures of each text, with its `id` and `tokens`.
    """

    method: str
    budget: int | None
    ratio: float | None
    nll: Measure
    excess_nll: Measure
    kl: Measure
    agreement: Measure
    mean_bytes: Measure
    peak_bytes: Measure
    slots_ratio: Measure
    problems: list[Json]
    max_bytes: int | None = None

    @property
    def setting(self) -> str:
        if self.max_bytes is not None:
            return f"{self.max_bytes / 2**20:g} MiB"
        if self.budget is None and self.ratio is None:
            return "all"
        return str(self.budget) if self.budget is not None else f"{self.ratio:g}"


@dataclass(frozen=True)
class Fidelity:
    """All points of one evaluation, with where they come from."""

    points: list[Point]
    full_nll: Measure
    provenance: Json = field(default_factory=dict)
    schema: int = SCHEMA

    def save(self, path: str | Path) -> None:
        """Writes the result as JSON, whole or not at all."""
        replace_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Fidelity:
        """Reads a saved result; ValueError if the file is none."""
        data = read_saved(path, "fidelity result", SCHEMA)
        try:
            return build(cls, data, "it")
        except ValueError as error:
            raise ValueError(f"{path} is not a fidelity result of schema {SCHEMA}: {error}") from error

    def table(self) -> Table:
        """The result as a rich table."""
        heads = ("method", "budget", "NLL", "excess NLL", "KL", "top-1 agreement", "mean bytes", "peak bytes", "slots")
        rows = [
            [
                p.method, p.setting, f"{p.nll.mean:.3f}", p.excess_nll.text(".3f"), p.kl.text(".3f"),
                p.agreement.text(".1%"), f"{p.mean_bytes.mean / 2**20:.2f} MiB", f"{p.peak_bytes.mean / 2**20:.2f} MiB",
                f"{p.slots_ratio.mean:.1%}",
            ]
            for p in self.points
        ]  # fmt: skip
        title = "Fidelity under teacher forcing (mean over problems, 95 % bootstrap interval)"
        return Section(title, heads, rows, f"full cache: {self.full_nll.text('.3f')} nats a token").rich()


def evaluate_fidelity(
    model: Model,
    texts: Iterable[Text],
    configs: Sequence[Config],
    *,
    seed: int = 0,
    provenance: Json | None = None,
    progress: Callable[[int], None] | None = None,
) -> Fidelity:
    """Measures each config on each text by teacher forcing: the prompt as prefill, then one token a step.

    configs: one for each point, each with a budget, a ratio or max_bytes, or method "full". seed: of the bootstrap over
    texts.
    progress: called with the number of steps done since the last call. Raises ValueError for no configs or texts.
    """
    if not configs:
        raise ValueError("give at least one config to evaluate")
    rows: list[list[_Figures]] = [[] for _ in configs]
    full: list[float] = []
    with using(model):
        for text in texts:
            reference = full_log_probs(model, text.prompt, text.solution)
            full.append(-float(_chosen(reference, text.solution).mean()))
            for config, own in zip(configs, rows, strict=True):
                own.append(_measure(model, config, text, reference, full[-1], progress))
    if not full:
        raise ValueError("there is no text to evaluate on")
    chosen = picks(len(full), seed)
    points = [
        Point(
            config.method, config.budget, config.ratio, problems=list(own),
            max_bytes=None if config.max_bytes is None else parse_bytes(config.max_bytes),
            **{metric: bootstrap([x[metric] for x in own], chosen) for metric in METRICS},
        )
        for config, own in zip(configs, rows, strict=True)
    ]  # fmt: skip
    return Fidelity(points, bootstrap(full, chosen), provenance or {})


def _chosen(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(-1, tokens.to(log_probs.device)[:, None])[:, 0]


def _measure(
    model: Model,
    config: Config,
    text: Text,
    reference: torch.Tensor,
    full_nll: float,
    progress: Callable[[int], None] | None,
) -> _Figures:
    cache = ReasonAllocCache(model, config)
    nll, kl, agreement = 0.0, 0.0, 0
    for i, own in enumerate(forced_log_probs(model, cache, text.prompt, text.solution)):
        full = reference[i]
        nll -= float(own[text.solution[i]])
        gap = torch.where(full > float("-inf"), full.exp() * (full - own), 0.0)
        kl += float(gap.sum(dtype=torch.float64))
        agreement += int(own.argmax() == full.argmax())
        if progress:
            progress(1)
    tokens, stats = len(text.solution), cache.stats()
    return {
        "id": text.id,
        "tokens": tokens,
        "nll": nll / tokens,
        "excess_nll": nll / tokens - full_nll,
        "kl": max(kl / tokens, 0.0),  # rounding may leave it a little below
        "agreement": agreement / tokens,
        "mean_bytes": float(stats["mean_bytes"]),
        "peak_bytes": float(stats["peak_bytes"]),
        "slots_ratio": float(stats["ratio"]),
    }


def points_of(
    methods: Sequence[str],
    budgets: Sequence[int],
    ratios: Sequence[float],
    base: Config,
    sizes: Sequence[int | str] = (),
) -> list[Config]:
    """A config for each method at each budget, ratio or size in bytes, the rest as in `base`; one alone for a method
    without a budget.

    base: any valid config; its method, budget, ratio and max_bytes do not matter.
    """
    configs: list[Config] = []
    for name in methods:
        bare: dict[str, Any] = {"method": name, "budget": None, "ratio": None, "max_bytes": None}
        if name == "full":
            configs.append(replace(base, **bare))
        else:
            configs += [replace(base, **{**bare, "budget": b}) for b in budgets]
            configs += [replace(base, **{**bare, "ratio": r}) for r in ratios]
            configs += [replace(base, **{**bare, "max_bytes": s}) for s in sizes]
    return configs
