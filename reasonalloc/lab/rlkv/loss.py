"""RLKV's objective (arXiv 2510.08525): GRPO without a KL term, and an L1 penalty that follows the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def advantages(rewards: Sequence[float], tokens: Sequence[int], group: int, by: str = "batch") -> torch.Tensor:
    """[n] of each chain. rewards: 0 or 1; tokens: their lengths; group: chains of one prompt, one after the other.

    by "batch": mean and standard deviation over all tokens of the batch, each with its chain's reward, as the published
    code has it; "group": over the chains of a prompt, as the paper says. Where all are alike they are 0.
    """
    r = torch.tensor(rewards, dtype=torch.float64)
    if by == "group":
        r = r.view(-1, group)
        centred = r - r.mean(1, keepdim=True)
        spread = centred.square().mean(1, keepdim=True).sqrt()
        return torch.where(spread > 0, centred / spread.clamp(min=1e-12), 0).flatten().float()
    weights = torch.tensor(tokens, dtype=torch.float64)
    weights = weights / weights.sum()
    centred = r - (weights * r).sum()
    spread = (weights * centred.square()).sum().sqrt()
    return (centred / spread if spread > 1e-9 else torch.zeros_like(r)).float()


def policy_loss(logprobs: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, clip: float = 0.4) -> torch.Tensor:
    """[n] clipped loss of each token: -min(ratio * A, clip(ratio) * A), ratio = exp(logprob - old)."""
    ratio = torch.exp(logprobs - old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def penalty_weight(reward: float, beta: float, tau: float) -> float:
    """beta * (e^reward - 1) where the batch's mean reward is above tau, else 0."""
    return beta * (math.exp(reward) - 1) if reward > tau else 0.0


def penalty(gates: torch.Tensor, reward: float, beta: float, tau: float) -> torch.Tensor:
    """The weight times the mean of |gate|."""
    return penalty_weight(reward, beta, tau) * gates.abs().mean()
