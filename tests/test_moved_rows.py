"""Rows that change places, leave or fork, with eviction going on: each goes on as it would have alone."""

from __future__ import annotations

import models
import pytest
import torch

import reasonalloc as ra

LENGTHS = (37, 20, 41, 9)


class Batch:
    """A cache, and of each of its rows the prompt and the tokens that came after it."""

    def __init__(self, model, config):
        self.cache, self.prompts = ra.ReasonAllocCache(model, config), [models.prompt(n, seed=n)[0] for n in LENGTHS]
        self.chains = [[] for _ in LENGTHS]
        ids, self.mask = models.left_padded(self.prompts)
        models.step(model, self.cache, ids, self.mask)

    def move(self, rows):
        self.cache.reorder_cache(torch.tensor(rows))
        self.prompts, self.chains = ([x[row] for row in rows] for x in (self.prompts, self.chains))
        self.chains, self.mask = [list(chain) for chain in self.chains], self.mask[rows]

    def decode(self, tokens):
        for _ in range(tokens):
            new = models.prompt(1, rows=len(self.prompts), seed=self.mask.shape[1])
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(new), 1)], 1)
            models.step(self.cache.model, self.cache, new, self.mask)
            for chain, token in zip(self.chains, new, strict=True):
                chain.append(token)


def of_row(cache, row):
    layers = cache.stats()["layers"]
    return [[p.tolist() for p in cache.positions(i, row)] for i in layers], cache.stats()["budgets"][row]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "reasonalloc", "keep_prompt": True},
        {"method": "rkv", "keep_prompt": True, "budget": 30},
        {"method": "rkv", "smoothing": 0.9},
        {"method": "reasonalloc-wave", "ratio": 0.4, "budget": None},
        {"method": "dynamickv", "smoothing": 0.5},
        {"method": "h2o"},
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [0, 11])  # moved before it shows that the prompt is over, or in the chain
def test_rows_that_move_go_on_as_they_would_alone(changes, first):
    model, config = models.tiny(), ra.Config(**{"budget": 24, "interval": 8, "window": 4} | changes)
    batch = Batch(model, config)
    for tokens, rows in ((first, (2, 3, 1)), (6, (1, 2, 0, 1)), (13, (3, 0))):
        batch.decode(tokens)
        before = tokens and [of_row(batch.cache, row) for row in range(len(batch.prompts))]  # a look ends a prompt
        batch.move(list(rows))
        assert not tokens or [of_row(batch.cache, row) for row in range(len(rows))] == [before[row] for row in rows]
    batch.decode(9)
    for row, (prompt, chain) in enumerate(zip(batch.prompts, batch.chains, strict=True)):
        alone = ra.ReasonAllocCache(model, config)
        models.step(model, alone, prompt[None])
        for token in chain:
            models.step(model, alone, token[None])
        assert of_row(batch.cache, row) == of_row(alone, 0), row
        assert alone.stats()["evicted"]
    assert batch.cache.cutter.prompt.tolist() == [len(x) for x in batch.prompts]
