"""How many slots a method spends on dead branches of a search, and the eviction that would lose nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc.config import Config
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.tokens import encode_prompt
from reasonalloc.lab.evaluate.forcing import forced_log_probs
from reasonalloc.lab.tasks.base import Item
from reasonalloc.lab.tasks.search import deaths
from reasonalloc.policy.observers import CutView
from reasonalloc.policy.scorers import Scorer
from reasonalloc.policy.view import HeadView, Numbers
from reasonalloc.protocols import Model, Tokenizer

ALIVE = np.iinfo(np.int64).max
Ends = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Chain:
    """A search that is fed to a model. prompt: [P], ids: [T] token ids. ends: [P + T] tokens that the row has when one
    of its tokens is of no more use; `ALIVE` for those of the prompt and of live lines."""

    id: str
    prompt: torch.Tensor
    ids: torch.Tensor
    ends: Ends


def chain_of(item: Item, tokenizer: Tokenizer, text: str | None = None) -> Chain:
    """A problem's worked chain, or another `text` for it. ValueError for an item without one."""
    text = item.chain if text is None else text
    if not text:
        raise ValueError(f"{item.id} has no worked chain: give an item of the task 'search'")
    prompt = encode_prompt(tokenizer, item.prompt, "cpu")[0]
    encoded: Any = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    begins = np.array([begin for begin, _ in encoded.offset_mapping], dtype=np.int64)
    lines = text.splitlines(keepends=True)
    written = np.cumsum([0, *map(len, lines)])  # characters before each line
    of_line = np.searchsorted(written, begins, side="right") - 1
    tokens = np.array([np.count_nonzero(begins < x) for x in written])  # before each line
    ends = np.full(len(prompt) + len(begins), ALIVE)
    for i, death in enumerate(deaths(lines)):
        if death < len(lines):
            ends[len(prompt) :][of_line == i] = len(prompt) + tokens[death]
    return Chain(item.id, prompt, torch.tensor(encoded.input_ids, dtype=torch.long), ends)


@dataclass
class SlotCounts:
    """Sums over cuts, layers and heads of one chain. kept, dead: slots after a cut before the window, and those of dead
    lines. evicted, alive: tokens that went, and those that were of use still."""

    kept: int = 0
    dead: int = 0
    evicted: int = 0
    alive: int = 0

    def watch(self, ends: Ends, window: int) -> Callable[[CutView], None]:
        """The observer of a cache of one row."""

        def look(cut: CutView) -> None:
            for kept, gone in zip(cut.kept, cut.evicted, strict=True):
                old = kept[kept < cut.tokens - window]
                self.kept += len(old)
                self.dead += int(np.count_nonzero(ends[old] <= cut.tokens))
                self.evicted += len(gone)
                self.alive += int(np.count_nonzero(ends[gone] > cut.tokens))

        return look


@dataclass(frozen=True)
class LiveFirst(Scorer):
    """The eviction that loses nothing while it can: tokens of dead lines go first, then the oldest.

    It knows which those are (`ends`, of a single row), so that it bounds what a scorer can win.
    """

    ends: Ends = field(kw_only=True, compare=False)

    def score(self, view: HeadView) -> Numbers:
        positions = view.positions.numpy()
        dead = self.ends[positions] <= view.tokens
        scores: Numbers = positions - dead * float(len(self.ends) + 1)
        return scores


@dataclass(frozen=True)
class Spent:
    """Of one method on one chain. dead: share of slots spent on dead lines, alive: share of what was evicted that was
    of use still; nan without a cut. nll: nats a token of the chain."""

    name: str
    id: str
    dead: float
    alive: float
    nll: float


def spent(model: Model, chain: Chain, config: Config, name: str, *, oracle: bool = False) -> Spent:
    """Feeds a chain token by token, as in decoding. oracle: evict by `LiveFirst` in place of the method's scorer."""
    counts = SlotCounts()
    policy = config.policy()
    if oracle:
        policy = replace(policy, scorer=LiveFirst(ends=chain.ends))
    watch = counts.watch(chain.ends, policy.schedule.window)
    cache = ReasonAllocCache(model, config, observers=[watch], policy=policy if oracle else None)
    total = 0.0
    for token, own in zip(chain.ids, forced_log_probs(model, cache, chain.prompt, chain.ids), strict=True):
        total -= float(own[token])
    share = counts.dead / counts.kept if counts.kept else float("nan")
    alive = counts.alive / counts.evicted if counts.evicted else float("nan")
    return Spent(name, chain.id, share, alive, total / len(chain.ids))


def spent_all(
    model: Model, chains: Sequence[Chain], configs: Iterable[tuple[str, Config]], oracle: Config | None = None
) -> list[Spent]:
    """Each config on each chain; oracle: also `LiveFirst` at the size of this config."""
    found = [spent(model, chain, config, name) for name, config in configs for chain in chains]
    if oracle is not None:
        found += [spent(model, chain, oracle, "oracle", oracle=True) for chain in chains]
    return found
