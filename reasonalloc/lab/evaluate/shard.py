"""A study in parts, each made by a process or machine of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line's options know shards, and need no torch
    from reasonalloc.lab.evaluate.accuracy import Batch

NAME = re.compile(r"shard-(\d+)-of-(\d+)")  # of a folder


@dataclass(frozen=True)
class Shard:
    """One of `count` parts. number: from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"a shard is I/N with I from 1 to N, got {self}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Of "3/8"."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if found is None:
            raise ValueError(f"a shard is I/N, like 3/8, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def folder(self) -> str:
        """Of its chains, inside of the study's."""
        return f"shard-{self.number}-of-{self.count}"

    def of(self, batches: Sequence[Batch], done: Iterable[tuple[str, str, int]] = ()) -> list[Batch]:
        """Its batches of a whole study's, without chains that are there. Whole batches: a chain has the neighbours that
        it has when nothing is split, so that it is the same to the last bit."""
        there = set(done)
        part = [
            replace(x, jobs=tuple(j for j in x.jobs if (x.cell.name, j.item.id, j.sample) not in there))
            for x in batches[self.number - 1 :: self.count]
        ]
        return [x for x in part if x.jobs]
