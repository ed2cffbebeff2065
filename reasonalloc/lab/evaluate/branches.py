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
from reasonalloc.hf.decode import DecodeBatch
from reasonalloc.hf.tokens import encode_prompt
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
    ends = ends_of(len(prompt), text, begins)
    return Chain(item.id, prompt, torch.tensor(encoded.input_ids, dtype=torch.long), ends)


def ends_of(prompt: int, text: str, begins: Ends) -> Ends:
    """As of `Chain`, of a prompt of so many tokens and a text whose tokens begin at these characters."""
    lines = text.splitlines(keepends=True)
    written = np.cumsum([0, *map(len, lines)])  # characters before each line
    of_line = np.searchsorted(written, begins, side="right") - 1
    tokens = np.array([np.count_nonzero(begins < x) for x in written])  # before each line
    ends = np.full(prompt + len(begins), ALIVE)
    for i, death in enumerate(deaths(lines)):
        if death < len(lines):
            ends[prompt:][of_line == i] = prompt + tokens[death]
    return ends


@dataclass
class SlotCounts:
    """Sums over cuts, layers and heads of one chain. kept, dead: slots after a cut before the window, and those of dead
    lines. evicted, alive: tokens that went, and those that were of use still. nats: of the tokens so far."""

    kept: int = 0
    dead: int = 0
    evicted: int = 0
    alive: int = 0
    nats: float = 0.0


@dataclass(frozen=True)
class LiveFirst(Scorer):
    """The eviction that loses nothing while it can: tokens of dead lines go first, then the oldest.

    It knows which those are, so that it bounds what a scorer can win. ends: those of a row, by its number.
    """

    ends: Callable[[int], Ends] = field(kw_only=True, compare=False)

    def score(self, view: HeadView) -> Numbers:
        positions, ends = view.positions.numpy(), self.ends(view.row)
        # The newest tokens may be of no line yet, those of a row that has ended of no chain.
        dead = np.append(ends, ALIVE)[np.minimum(positions, len(ends))] <= view.tokens
        scores: Numbers = positions - dead * float(view.tokens + 1)
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


def spent(
    model: Model, chains: Sequence[Chain], config: Config, name: str, *, oracle: bool = False, pad: int = 0
) -> list[Spent]:
    """Feeds chains token by token, as in decoding, all as one batch. oracle: evict by `LiveFirst` in place of the
    method's scorer. pad: a token id, for what shorter rows are fed beside longer ones."""
    counts = [SlotCounts() for _ in chains]
    policy = config.policy()
    if oracle:
        policy = replace(policy, scorer=LiveFirst(ends=[x.ends for x in chains].__getitem__))
    window = policy.schedule.window

    def look(cut: CutView) -> None:
        own, ends = counts[cut.row], chains[cut.row].ends
        if cut.tokens >= len(ends):  # what the last token predicts is not asked
            return
        for kept, gone in zip(cut.kept, cut.evicted, strict=True):
            old = kept[kept < cut.tokens - window]
            own.kept += len(old)
            own.dead += int(np.count_nonzero(ends[old] <= cut.tokens))
            own.evicted += len(gone)
            own.alive += int(np.count_nonzero(ends[gone] > cut.tokens))

    cache = ReasonAllocCache(model, config, observers=[look], policy=policy if oracle else None)
    batch = DecodeBatch(model, cache, [x.prompt for x in chains], pad)
    longest = max(len(x.ids) for x in chains)
    ids = torch.stack([torch.nn.functional.pad(x.ids, (0, longest - len(x.ids)), value=pad) for x in chains])
    for i, tokens in enumerate(ids.T):
        logits = batch.forward().float().cpu()
        nats = logits.logsumexp(-1) - logits.gather(-1, tokens[:, None])[:, 0]
        for x, own, count in zip(chains, nats, counts, strict=True):
            count.nats += float(own) if i < len(x.ids) else 0.0
        batch.append(tokens)
    return [_found(name, x, count) for x, count in zip(chains, counts, strict=True)]


def _found(name: str, chain: Chain, counts: SlotCounts) -> Spent:
    dead = counts.dead / counts.kept if counts.kept else float("nan")
    alive = counts.alive / counts.evicted if counts.evicted else float("nan")
    return Spent(name, chain.id, dead, alive, counts.nats / len(chain.ids))


def spent_all(
    model: Model,
    chains: Sequence[Chain],
    configs: Iterable[tuple[str, Config]],
    oracle: Config | None = None,
    pad: int = 0,
) -> list[Spent]:
    """Each config on all chains; oracle: also `LiveFirst` at the size of this config."""
    found = [x for name, config in configs for x in spent(model, chains, config, name, pad=pad)]
    if oracle is not None:
        found += spent(model, chains, oracle, "oracle", oracle=True, pad=pad)
    return found
