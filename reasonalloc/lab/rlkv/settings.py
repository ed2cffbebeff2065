"""Settings of a run, and a line of its log. Needs no torch: the command line reads its options from them."""

from __future__ import annotations

from dataclasses import dataclass

from reasonalloc.policy.setting import check_settings, setting

OBJECTIVES = ("rlkv", "duo")


@dataclass(frozen=True)
class Settings:
    """objective: "rlkv" or "duo". sinks, recent: what a local head sees in training; 4 pages by default, for the
    published 128 + 256 hold a short chain whole and would give gates no gradient. prompts, samples: of a step.
    pool: prompts in all. beta, tau: of the penalty (rlkv); duo's weight of the mean gate is 0.05. advantage: "batch" or
    "group". rate: of AdamW, without weight decay. micro: rows of a forward and backward pass. seed: of samples and of
    the order of prompts; data_seed: of the problems.
    """

    objective: str = "rlkv"
    steps: int = setting(60, 1, 10**6, whole=True)
    prompts: int = setting(8, 1, 4096, whole=True)
    samples: int = setting(4, 1, 256, whole=True)
    pool: int = setting(240, 1, 10**6, whole=True)
    sinks: int = setting(16, 0, 2**31 - 1, whole=True)
    recent: int = setting(48, 1, 2**31 - 1, whole=True)
    beta: float = setting(0.05, 0, 1e6)
    tau: float = setting(0.5, 0, 1)
    rate: float = setting(0.03, 0, 10)
    clip: float = setting(0.4, 0, 1)
    advantage: str = "batch"
    temperature: float = setting(1.0, 1e-3, 100)
    max_new_tokens: int = setting(512, 1, 10**6, whole=True)
    micro: int = setting(4, 1, 4096, whole=True)
    seed: int = setting(0, 0, 2**63 - 1, whole=True)
    data_seed: int = setting(0, 0, 2**63 - 1, whole=True)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.advantage not in ("batch", "group"):
            raise ValueError(f'advantage must be "batch" or "group", got {self.advantage!r}')


@dataclass
class Line:
    """A line of the log. reward: mean of the batch; sparsity: share of gates below 0.5. policy_norm, penalty_norm: of
    the gradients. gap: mean |log-probability in training - at sampling| of the tokens looked at. loss: of "duo"."""

    step: int
    seconds: float
    reward: float
    mean_gate: float
    sparsity: float
    policy_norm: float
    penalty_norm: float
    gap: float
    loss: float
    tokens: int
    rollout_seconds: float
    update_seconds: float
