"""Batches of coming steps, made in worker processes while the model learns from those before."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from batches import Batch
from torch.utils.data import DataLoader, Dataset

AHEAD = 4  # batches of a worker that wait


@dataclass(frozen=True)
class Steps(Dataset[Any]):
    """make: the batch of (step, longest)."""

    make: Callable[[int, int], Batch]

    def __getitem__(self, step: tuple[int, int]) -> Batch:
        return self.make(*step)


def loaded(make: Callable[[int, int], Batch], steps: Iterable[tuple[int, int]], loaders: int) -> Iterator[Batch]:
    """The batches of steps (number, longest), in their order, whatever the number of worker processes.

    loaders 0: made in this process, each when it is asked for; else `make` is pickled, and `steps` are asked for ahead.
    """
    own = torch.Generator()  # or the loader would draw from the global one
    if not loaders:
        yield from DataLoader(Steps(make), None, sampler=steps, collate_fn=_same, generator=own)
        return
    found = DataLoader(
        Steps(make), None, sampler=steps, num_workers=loaders, collate_fn=pickle.dumps, generator=own,
        worker_init_fn=_alone, multiprocessing_context="spawn", prefetch_factor=AHEAD,
    )  # fmt: skip
    # As bytes: tensors would go through shared memory, of which containers have little.
    for packed in found:
        yield pickle.loads(packed)


def _same(made: Any) -> Any:
    return made


def _alone(worker: int) -> None:
    """A worker has one core; torch's threads the DataLoader sees to itself."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
