"""What a method is: names of its parts and of its schedule, or code of its own in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from reasonalloc import allocate
from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LAYERS, LayerAllocator
from reasonalloc.policy.scorers import Scorer
from reasonalloc.policy.storage import Storage
from reasonalloc.policy.view import HeadView, Numbers, Settings


@dataclass(frozen=True)
class Method:
    """Base of all methods. Fields choose parts by name; overriding a function replaces a part by Python code.

    scorer, layers, heads: a registered name, or a part made by hand. storage: the same. interval, keep_prompt, sinks:
    of the schedule.

    A subclass may override
        score(view: HeadView) -> [n] or [n - window] numbers (tensor, array or list), higher stays;
        head_budgets(scores, total, config) -> integers, one for each head, that sum to total;
        layer_totals(demand, total, heads, config) -> integers, one for each layer, that sum to total.
    Its own dataclass fields are set by Config(options={...}); `files` names those that are paths which must exist.
    """

    scorer: str | Scorer = "rkv"
    layers: str | LayerAllocator = "uniform"
    heads: str | HeadAllocator = "uniform"
    interval: int = 128
    keep_prompt: bool = False
    sinks: int = 0

    storage: ClassVar[str | Storage] = "dense"
    name: ClassVar[str] = ""
    unlimited: ClassVar[bool] = False
    whole_prompts: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()

    def score(self, view: HeadView) -> Numbers:
        raise NotImplementedError  # the part named by `scorer` is used instead

    def head_budgets(self, scores: Sequence[npt.NDArray[np.float32]], total: int, config: Settings) -> Numbers:
        """Head budgets of one layer, by the C allocator named by `heads`."""
        return allocate.route(
            scores,
            total,
            heads=self.heads if isinstance(self.heads, str) else self.heads.name,
            window=config.window,
            gamma=config.gamma,
            lo=config.lo,
            hi=config.hi,
            mu=config.mu,
            safeguard=config.safeguard,
        )

    def layer_totals(self, demand: npt.NDArray[np.float64], total: int, heads: int, config: Settings) -> Numbers:
        """Slots of each layer. demand: each layer's (all ones unless `layers` follow the wave). Every window fits."""
        floor = heads * config.window
        if self.layers == "pyramid":
            return allocate.pyramid(len(demand), total, config.beta, floor)
        return allocate.robustify(demand, total, config.gamma, config.lo, config.hi, floor)

    @classmethod
    def overrides(cls, function: str) -> bool:
        """Whether a subclass has its own `score`, `head_budgets` or `layer_totals`."""
        return getattr(cls, function) is not getattr(Method, function)

    @property
    def needs_wave(self) -> bool:
        """Whether the layers' demands matter."""
        layers = LAYERS[self.layers] if isinstance(self.layers, str) else self.layers
        return layers.uses_wave and not self.unlimited
