"""Scorers by statistics that attention gathers at every step.

Weights of a query are those over the slots that its head holds then. Query heads that share a KV head are reduced:
summed for H2O, the largest for the others. Prompt statistics say which queries of the prompt count: "all" are computed
anew after a step of several tokens, O(n^2 d) a query head; "window" are the newest `window` of them; "none".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reasonalloc.policy.scorers import SCORERS, CoreScorer, ScoreArguments, StatArguments
from reasonalloc.policy.setting import choice, flag, setting

PROMPT_STATISTICS = ("all", "window", "none")


@SCORERS.enter("h2o")
@dataclass(frozen=True)
class H2O(CoreScorer):
    """H2O's (arXiv 2306.14048, algorithm 1): the attention that a token has been given by all queries since it came.

    recent: share of the budget that is a head's newest tokens, which stay (the paper's half; at least the window).
    decay: what is left of a sum at each further query; 1 is the paper's. prompt_statistics: which queries of the
    prompt count.

    As in the paper, unlike the published code (FMInference/H2O): the sum is one of float32 per KV head (there of
    float16, in which what is below 2^-11 of it is lost), over the group; padding gives and takes nothing.
    """

    recent: float = setting(0.5, 0, 1)
    decay: float = setting(1.0, 0, 1)
    prompt_statistics: str = choice("all", *PROMPT_STATISTICS)

    core: ClassVar[str] = "h2o"
    window_attention = True

    def arguments(self, layer: int) -> ScoreArguments:
        return ScoreArguments(self.core, recent=self.recent)

    def remark(self, protected: int, slots: int) -> str:
        recent = int(self.recent * slots)
        if protected + recent < slots:
            return ""
        return (
            f"h2o keeps {recent} newest tokens of {slots} a head, and {protected} of the prompt stay before them: no"
            " slot is left for what was attended to, so it keeps the newest tokens alone (take a smaller option"
            " 'recent', a larger budget, or no kept prompt)"
        )

    @property
    def statistics(self) -> StatArguments:
        return StatArguments(PROMPT_STATISTICS.index(self.prompt_statistics), decay=self.decay)


@dataclass(frozen=True)
class _Recurring(CoreScorer):
    """By when tokens are active: their attention weight is at least `activation`.

    relative: at least activation / n, of n tokens that the query sees, so that it means the same at any length.
    """

    activation: float = setting(1e-4, 1e-12, 1e6)
    relative: bool = flag(False)

    window_attention = True


@SCORERS.enter("lazy")
@dataclass(frozen=True)
class Lazy(_Recurring):
    """LazyEviction's (arXiv 2506.15969 v3): time since a token was active, by the longest gap that it came back from.

    TS: position of the newest query for which it was active; MRI: the longest gap between two such queries, 0 where
    there was none since it came; t: now. form "paper": 2 sigmoid(-(t - TS) / MRI) + 2 sigmoid(1 - MRI), and 0 where MRI
    is 0; activation by a token's own query does not count. form "code", as published (Halo-949/LazyEviction): the first
    term is 2 sigmoid(-1 - (t - TS) / (MRI + 1e-5)); a token begins with TS one step before it came, so that its own
    query makes MRI 1, and a prompt's tokens with the last one's. Then a token that is only seen at birth outranks every
    one that recurs with MRI 3 or more. Counters are integers here; there they are the model's float16, exact to 2048.

    prompt_statistics: None: "all" for the paper's form, "none" for the code's.
    """

    form: str = choice("paper", "paper", "code")
    prompt_statistics: str | None = choice(None, *PROMPT_STATISTICS)

    core: ClassVar[str] = "lazy"

    def arguments(self, layer: int) -> ScoreArguments:
        return ScoreArguments(self.core, published_code=self.form == "code")

    @property
    def statistics(self) -> StatArguments:
        code = self.form == "code"
        prompt = self.prompt_statistics or ("none" if code else "all")
        number = PROMPT_STATISTICS.index(prompt)
        return StatArguments(number, activation=self.activation, relative=self.relative, birth=code)


@SCORERS.enter("raas")
@dataclass(frozen=True)
class RaaS(_Recurring):
    """RaaS's (arXiv 2502.11147): the newest query for which a token was active; what is idle longest goes.

    The paper evicts whole pages of 16 tokens; here tokens are evicted one by one. prompt_statistics: which queries of
    the prompt count.
    """

    prompt_statistics: str = choice("all", *PROMPT_STATISTICS)

    core: ClassVar[str] = "raas"

    @property
    def statistics(self) -> StatArguments:
        number = PROMPT_STATISTICS.index(self.prompt_statistics)
        return StatArguments(number, activation=self.activation, relative=self.relative)
