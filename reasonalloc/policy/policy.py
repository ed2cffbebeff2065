"""A method put together: its parts, each with its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reasonalloc import _core
from reasonalloc.policy.cold import Cold
from reasonalloc.policy.gates import GateHeads, GateLayers, ModelShape
from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LayerAllocator
from reasonalloc.policy.layers_by_scores import LayersByScores
from reasonalloc.policy.profiled import ProfiledHeads
from reasonalloc.policy.schedule import Schedule
from reasonalloc.policy.scorers import CoreScorer, Scorer, StatArguments
from reasonalloc.policy.storage import Storage
from reasonalloc.policy.view import Settings

_MOST_AHEAD = 1024


@dataclass(frozen=True)
class Policy:
    """What a cache runs. `Config.policy()` makes one; one made by hand is given to `ReasonAllocCache(policy=...)`.

    name: the method's. settings: what scorers in Python see as `view.config`. unlimited: nothing is ever cut.
    cold: where evicted tokens go, None: away.
    """

    name: str
    scorer: Scorer
    layers: LayerAllocator
    heads: HeadAllocator
    schedule: Schedule
    storage: Storage
    settings: Settings
    unlimited: bool = False
    cold: Cold | None = None

    def __post_init__(self) -> None:
        for part in (self.layers, self.heads):
            if isinstance(part, (GateLayers, GateHeads)):
                part.check_beside(self.layers, self.heads, self.schedule)

    def fitted(self, shape: ModelShape) -> Policy:
        """The same for a model; ValueError where a part was made for another one."""
        layers, heads = self.layers, self.heads
        if isinstance(layers, GateLayers) and isinstance(heads, GateHeads):
            return replace(self, layers=layers.fitted(shape), heads=heads.fitted(shape))
        return replace(self, heads=heads.fitted(shape)) if isinstance(heads, ProfiledHeads) else self

    @property
    def needs_wave(self) -> bool:
        """Whether the layers' demands matter."""
        return self.layers.uses_wave and not self.unlimited

    @property
    def two_phases(self) -> bool:
        """Whether all layers are scored before one is cut, because a part sees the scores of all."""
        return (isinstance(self.layers, LayersByScores) or self.scorer.sees_layers) and not self.unlimited

    @property
    def window_attention(self) -> bool:
        """Whether attention is to leave its weights behind for the scores."""
        if self.cold is not None:  # what the hot tokens leave behind is not what the cut will look at
            return False
        return self.scorer.window_attention and not self.scorer.in_python and not self.unlimited

    @property
    def core_scorer(self) -> str | None:
        """The C scorer whose statistics a layer keeps; None: none."""
        return None if self.unlimited else self.scorer.core_name

    def prepare(self, core: _core.Layer, layer: int) -> None:
        """Gives a layer that was just made what the scorer needs to know of it. layer: its number in the model."""
        if isinstance(self.scorer, CoreScorer) and not self.unlimited:
            self.scorer.prepare(core, layer)

    @property
    def statistics(self) -> StatArguments | None:
        """What a layer gathers at every step for it; None: nothing."""
        return self.scorer.statistics if self.core_scorer and isinstance(self.scorer, CoreScorer) else None

    @property
    def ahead(self) -> int:
        """Tokens of a row that layers make room for beforehand; lists grow on where intervals are longer."""
        return 0 if self.unlimited else min(self.schedule.interval, _MOST_AHEAD)
