"""A method put together: its parts, each with its settings."""

from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LayerAllocator
from reasonalloc.policy.schedule import Schedule
from reasonalloc.policy.scorers import CoreScorer, Scorer, StatArguments
from reasonalloc.policy.storage import Storage
from reasonalloc.policy.view import Settings

_MOST_AHEAD = 1024


@dataclass(frozen=True)
class Policy:
    """What a cache runs. `Config.policy()` makes one; one made by hand is given to `ReasonAllocCache(policy=...)`.

    name: the method's. settings: what scorers in Python see as `view.config`. unlimited: nothing is ever cut.
    """

    name: str
    scorer: Scorer
    layers: LayerAllocator
    heads: HeadAllocator
    schedule: Schedule
    storage: Storage
    settings: Settings
    unlimited: bool = False

    @property
    def needs_wave(self) -> bool:
        """Whether the layers' demands matter."""
        return self.layers.uses_wave and not self.unlimited

    @property
    def window_attention(self) -> bool:
        """Whether attention is to leave its weights behind for the scores."""
        return self.scorer.window_attention and not self.scorer.in_python and not self.unlimited

    @property
    def core_scorer(self) -> str | None:
        """The C scorer whose statistics a layer keeps; None: none."""
        return None if self.unlimited else self.scorer.core_name

    @property
    def statistics(self) -> StatArguments | None:
        """What a layer gathers at every step for it; None: nothing."""
        return self.scorer.statistics if self.core_scorer and isinstance(self.scorer, CoreScorer) else None

    @property
    def ahead(self) -> int:
        """Tokens of a row that layers make room for beforehand; lists grow on where intervals are longer."""
        return 0 if self.unlimited else min(self.schedule.interval, _MOST_AHEAD)
