"""Searches that a model writes while an oracle says which lines are dead: what an eviction could answer at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc.config import Config
from reasonalloc.hf.attention import using
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.decode import Sampling, chains
from reasonalloc.hf.tokens import encode_prompt, ends
from reasonalloc.lab.evaluate.branches import Ends, LiveFirst, ends_of
from reasonalloc.lab.evaluate.grading import grade
from reasonalloc.lab.tasks.base import Item
from reasonalloc.policy.observers import CutView
from reasonalloc.protocols import Model, Tokenizer


class Written:
    """What each row of a batch has written, and which of that is dead. Rows may leave: it observes the cache.

    prompts: tokens of each row's prompt, by its key. A token decodes to the same text wherever it stands, as with a
    byte-level tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, prompts: dict[str, int]) -> None:
        self.tokenizer, self.prompts, self.keys = tokenizer, prompts, list(prompts)
        self.words: dict[str, list[str]] = {key: [] for key in prompts}
        self._ends: dict[str, Ends] = {}  # of a row, until it writes on: every head of a cut asks

    def __call__(self, cut: CutView) -> None:
        """A cut is nothing to it."""

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        """Row i becomes row source[i]."""
        self.keys = [self.keys[i] for i in source]

    def watch(self, logits: torch.Tensor, keys: Sequence[str], picked: Sequence[int]) -> None:
        """A step of `decode.chains`."""
        for key, token in zip(keys, picked, strict=True):
            self.words[key].append(self.tokenizer.decode([token]))
            self._ends.pop(key, None)

    def ends(self, row: int) -> Ends:
        """As of `branches.Chain`, of what the row has written so far."""
        key = self.keys[row]
        if key not in self._ends:
            words = self.words[key]
            begins = np.cumsum([0, *map(len, words)])[:-1]
            self._ends[key] = ends_of(self.prompts[key], "".join(words), begins)
        return self._ends[key]


@dataclass(frozen=True)
class Answered:
    """One chain. right: of the answers asked. finish: "stop" or "length"."""

    id: str
    right: list[bool]
    tokens: int
    finish: str
    text: str


def answer_with_oracle(
    model: Model, tokenizer: Tokenizer, asked: Sequence[Item], config: Config, sampling: Sampling
) -> list[Answered]:
    """Chains of searches as one batch, cut to the sizes of `config`, dead lines first."""
    prompts = {x.id: encode_prompt(tokenizer, x.prompt, "cpu")[0].tolist() for x in asked}
    written = Written(tokenizer, {key: len(ids) for key, ids in prompts.items()})
    policy = replace(config.policy(), scorer=LiveFirst(ends=written.ends))
    with using(model):
        cache = ReasonAllocCache(model, config, observers=[written], policy=policy)
        made = {
            x.key: x
            for x in chains(
                model, cache, list(prompts.items()), ends(model, tokenizer), sampling, tokenizer.pad_token_id or 0,
                watch=written.watch,
            )
        }  # fmt: skip
    found = []
    for item in asked:
        chain = made[item.id]
        text = tokenizer.decode(chain.ids, skip_special_tokens=True)
        right = grade(text, item.answers, item.asked).right
        found.append(Answered(item.id, right, len(chain.ids), chain.finish, text))
    return found
