"""Scorers: which of a head's tokens are worth keeping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from reasonalloc import _core
from reasonalloc.policy.registry import Part, Registry
from reasonalloc.policy.setting import Range, setting
from reasonalloc.policy.view import HeadView, LayerScores, Numbers, RowView
from reasonalloc.protocols import Model


class ScoreArguments(NamedTuple):
    """What the C scorer of that name is given."""

    scorer: str
    alpha: float = 0.0
    threshold: float = 0.0
    kernel: int = 1
    seed: int = 0
    recent: float = 0.0
    published_code: bool = False
    average: bool = False
    n_large: int = -1
    n_sink: int = 0
    span: int = 0


class StatArguments(NamedTuple):
    """How C gathers statistics at each step; prompt: 0 all, 1 window, 2 none of its queries."""

    prompt: int = 0
    decay: float = 1.0
    activation: float = 1e-4
    relative: bool = False
    birth: bool = False


@dataclass(frozen=True)
class Scorer(Part):
    """Base of all scorers. One written in Python overrides `score` and is named by `ra.register`.

    One whose scores of a layer depend on those of other layers also overrides `across`; it may build on scores in C.

    smoothing: weight of a token's past scores in an average over the cuts that decays exponentially; 0 for none.
    """

    smoothing: float = field(default=0.0, kw_only=True, metadata={"allowed": Range(0, 0.999)})

    kind: ClassVar[str] = "scorer"
    window_attention = False  # whether attention leaves its weights behind for it

    def score(self, view: HeadView) -> Numbers:
        """[n] or, without the window, [n - window] numbers (tensor, array or list); higher stays."""
        raise NotImplementedError

    def across(self, layers: Sequence[LayerScores], view: RowView) -> Sequence[Sequence[Numbers]]:
        """The scores that take the place of those of all layers of a row: [L][H] of the lengths that `layers` have.

        Called at each cut once `score`, or the C scorer, has scored all layers, before budgets and `smoothing`. A
        scorer that overrides it is cut in two phases: all layers after the pass's last one, and none before the prompt
        ends. Keeping the same tokens in all layers takes allocators that give all the same, as "uniform" do.
        """
        raise NotImplementedError

    @property
    def sees_layers(self) -> bool:
        """Whether `across` is called."""
        return type(self).across is not Scorer.across

    def check_complete(self) -> None:
        """ValueError where a setting is missing that it cannot do without."""

    def check(self, model: Model, layers: Sequence[int]) -> None:
        """ValueError for a model that it cannot score. layers: those with a budget."""

    def remark(self, protected: int, slots: int) -> str:
        """What a user should know where a head has so many slots and protected tokens; "" for nothing."""
        return ""

    @property
    def in_python(self) -> bool:
        """Whether `score` is called; otherwise the C scorer of `arguments` runs."""
        return type(self).score is not Scorer.score

    @property
    def core_name(self) -> str | None:
        """Name of the C scorer, None for one in Python."""
        return None


class CoreScorer(Scorer):
    """A scorer in C. core: its name there."""

    core: ClassVar[str]

    def arguments(self, layer: int) -> ScoreArguments:
        """layer: its number in the model."""
        return ScoreArguments(self.core)

    def prepare(self, core: _core.Layer, layer: int) -> None:
        """Gives a layer of the core, which was just made, what the scorer needs to know of it."""

    @property
    def statistics(self) -> StatArguments | None:
        """Of every step's attention, which its scores are made of; None for those that need none."""
        return None

    @property
    def core_name(self) -> str | None:
        return None if self.in_python else self.core


SCORERS: Registry[Scorer] = Registry("scorer")


@SCORERS.enter("rkv")
@dataclass(frozen=True)
class RKV(CoreScorer):
    """R-KV's (arXiv 2505.24133): alpha x importance - (1 - alpha) x redundancy.

    threshold: cosine above which two keys are similar. kernel: width of the max-pool over importance.
    """

    alpha: float = setting(0.1, 0, 1)
    threshold: float = setting(0.5, -1, 1)
    kernel: int = setting(7, 1, 4097, whole=True, odd=True)

    core: ClassVar[str] = "rkv"
    window_attention = True

    def arguments(self, layer: int) -> ScoreArguments:
        return ScoreArguments(self.core, self.alpha, self.threshold, self.kernel)


@SCORERS.enter("rkv-centred")
@dataclass(frozen=True)
class CentredRKV(RKV):
    """R-KV's with redundancy counted from its mean, so that heads of different sizes compare."""

    core: ClassVar[str] = "rkv-centred"


@SCORERS.enter("importance")
@dataclass(frozen=True)
class Importance(CoreScorer):
    """SnapKV's (arXiv 2404.14469): attention of the window's queries, max-pooled over `kernel` tokens."""

    kernel: int = setting(7, 1, 4097, whole=True, odd=True)

    core: ClassVar[str] = "importance"
    window_attention = True

    def arguments(self, layer: int) -> ScoreArguments:
        return ScoreArguments(self.core, kernel=self.kernel)


@SCORERS.enter("recency")
@dataclass(frozen=True)
class Recency(CoreScorer):
    """StreamingLLM's (arXiv 2309.17453): the newest tokens."""

    core: ClassVar[str] = "recency"


@SCORERS.enter("random")
@dataclass(frozen=True)
class Random(CoreScorer):
    """A number for each token that depends on (seed, layer, head, position) alone."""

    seed: int = setting(0, 0, 2**63 - 1, whole=True)

    core: ClassVar[str] = "random"

    def arguments(self, layer: int) -> ScoreArguments:
        return ScoreArguments(self.core, seed=self.seed * 1_000_003 + layer)
