"""What the loss of a batch needs, as indices that are worked out on the CPU, so that a GPU is never waited for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from batches import Batch

RIVALS = 4096


@dataclass(frozen=True)
class Targets:
    """inputs [B, n - 1]; places: of the tokens before those with a label, among all of inputs; rivals: the tokens that
    the softmax runs over, rising; aims: of each place its label's place among the rivals; weights: of each in the loss.
    """

    inputs: torch.Tensor
    places: torch.Tensor
    rivals: torch.Tensor
    aims: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Targets:
        return Targets(*(getattr(self, x).to(device) for x in self.__dataclass_fields__))


def targets(chosen: Batch, vocabulary: int) -> Targets:
    labels = chosen.labels[:, 1:]
    counted = labels != -100
    rivals = rivals_of(chosen, vocabulary)
    aims = torch.searchsorted(rivals, labels[counted])
    places = counted.flatten().nonzero()[:, 0]
    return Targets(chosen.inputs[:, :-1], places, rivals, aims, chosen.weights[:, 1:][counted])


def rivals_of(chosen: Batch, vocabulary: int) -> torch.Tensor:
    """Those of the batch and RIVALS drawn ones, which saves a seventh of a step on a CPU."""
    numbers = torch.Generator().manual_seed(chosen.tokens)
    drawn = torch.randint(vocabulary, (RIVALS,), generator=numbers)
    found: torch.Tensor = torch.unique(torch.cat([chosen.inputs.flatten(), drawn]))
    return found
