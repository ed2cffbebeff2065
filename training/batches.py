"""What a training step sees: problems of one setting of a task, as token ids with labels on the chain only."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import torch

from reasonalloc.hf.tokens import encode_prompt
from reasonalloc.lab.tasks import search
from reasonalloc.lab.tasks.ledger import GRID, MOST, NAMES, Dials, Ledger, problem, relative

SPLIT = "train"  # the seed's first word; `reasonalloc evaluate` uses another
SUM_WEIGHT = 4.0
DRILL_TOKENS = 250  # of a row of sums
LINE_TOKENS = 17  # of a search
NUMBERS = ((25, (7, 9)), (80, (9, 11)), (2000, (11, 13)))  # how many to choose from, by the most lines


@dataclass(frozen=True)
class Batch:
    """inputs [B, n] right-padded (a causal model needs no mask for that); labels [B, n], -100 where there is none;
    weights [B, n] of the labels in the loss; dials: None for a batch of sums or of searches."""

    inputs: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    dials: Dials | None
    tokens: int


def draw_dials(rng: random.Random) -> Dials:
    """Half from the grid that is judged, the rest from anywhere in between."""
    if rng.random() < 0.5:
        return rng.choice(list(GRID.values()))
    return Dials(
        questions=rng.randint(1, 8),
        depth=rng.randint(1, 5),
        distractors=rng.randint(0, 10),
        restate=rng.randint(0, 2),
        doubt=rng.choice((0, 0, 1, 2)),  # fewer of those that mostly repeat: a sum that is new teaches more
        filler=rng.choice((0, 0, 1, 2)),
    )


def encode(tokenizer: Any, given: Ledger | search.Search) -> tuple[list[int], list[int]]:
    """(ids, labels) of prompt and chain."""
    prompt = encode_prompt(tokenizer, given.prompt, "cpu")[0].tolist()
    chain = [*tokenizer(given.chain, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return prompt + chain, [-100] * len(prompt) + chain


def batch(tokenizer: Any, seed: int, step: int, longest: int, tokens: int, drill: float = 0.0) -> Batch:
    """The batch of a step: the same for the same arguments, so that a resumed run goes on as if it had not stopped.

    longest: tokens of the first sequence at most; the others are of the same dials, about as long. tokens: of a batch,
    about, unless one sequence alone has more. drill: share of batches that are nothing but sums.
    """
    rng = random.Random(f"{seed}/{step}")
    if rng.random() < drill:
        return sums(tokenizer, rng, tokens // DRILL_TOKENS)
    while True:
        dials = draw_dials(rng)
        # A first guess saves encoding what is too long by far.
        if dials.questions * dials.depth * (30 + 12 * dials.filler + 25 * dials.doubt) > 2 * longest:
            continue
        rows = [encode(tokenizer, problem(f"{SPLIT}/{seed}/{step}", 0, dials))]
        if len(rows[0][0]) <= longest:
            break
    count = max(1, tokens // len(rows[0][0]))
    rows += [encode(tokenizer, problem(f"{SPLIT}/{seed}/{step}", i, dials)) for i in range(1, count)]
    inputs, labels = padded(rows, tokenizer.eos_token_id)
    return Batch(inputs, labels, weigh(tokenizer, labels), dials, sum(len(ids) for ids, _ in rows))


def draw_size(rng: random.Random, longest: int) -> search.Size:
    """Half from the grid that is judged, as far as it fits, the rest of any length."""
    fitting = [x for x in search.GRID.values() if x.lines[1] * LINE_TOKENS <= longest]
    if fitting and rng.random() < 0.5:
        return rng.choice(fitting)
    most = rng.randint(8, max(8, longest // LINE_TOKENS))
    return search.Size(rng.randint(*next(span for lines, span in NUMBERS if most <= lines)), (max(4, most // 2), most))


def searches(tokenizer: Any, seed: int, step: int, longest: int, tokens: int, drill: float = 0.0) -> Batch:
    """The batch of a step of the task "search", of one size; the same for the same arguments.

    tokens: of a batch with its padding, which may be a third of it, unless one sequence alone has more. drill: share of
    batches that are nothing but single lines, each of numbers of its own: a long search repeats its sums.
    """
    rng = random.Random(f"search/{seed}/{step}")
    if rng.random() < drill:
        return single_lines(tokenizer, rng, tokens // DRILL_TOKENS)
    rows: list[tuple[list[int], list[int]]] = []
    while not rows:
        rows = rows_of(tokenizer, f"{SPLIT}/{seed}/{step}", draw_size(rng, longest), longest, tokens)
    inputs, labels = padded(rows, tokenizer.eos_token_id)
    worked = [tokenizer(x, add_special_tokens=False).input_ids[-1] for x in (*"0123456789", " >", " =")]
    weights = torch.where(torch.isin(labels, torch.tensor(worked)), SUM_WEIGHT, 1.0)
    return Batch(inputs, labels, weights, None, sum(len(ids) for ids, _ in rows))


def rows_of(
    tokenizer: Any, seed: str, size: search.Size, longest: int, tokens: int
) -> list[tuple[list[int], list[int]]]:
    """As many searches as fit; none where the first is too long, or hardly to be found."""
    rows: list[tuple[list[int], list[int]]] = []
    width = 0
    for i in itertools.count():
        try:
            row = encode(tokenizer, search.problem(seed, i, size))
        except ValueError:  # of some sizes one search in thousands has so many lines
            row = None
        if row is None or len(row[0]) > longest:
            if not rows:
                break
            continue
        width = max(width, len(row[0]))
        if rows and width * (len(rows) + 1) > tokens:
            break
        rows.append(row)
    return rows


def single_lines(tokenizer: Any, rng: random.Random, count: int) -> Batch:
    """Rows of lines as searches have them, labels on what has to be worked out only."""
    rows = []
    for _ in range(count):
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < DRILL_TOKENS:
            for text, counted in a_line(rng):
                part = tokenizer(text, add_special_tokens=False).input_ids
                ids += part
                labels += part if counted else [-100] * len(part)
        rows.append((ids[:DRILL_TOKENS], labels[:DRILL_TOKENS]))
    inputs, labels_ = padded(rows, tokenizer.eos_token_id)
    return Batch(inputs, labels_, torch.ones(labels_.shape), None, inputs.numel())


def a_line(rng: random.Random) -> list[tuple[str, bool]]:
    """Parts of a line that puts a number back or takes one after larger ones, and whether each is to be worked out.

    Numbers are often near to what is needed: there it is hard to say which is larger.
    """
    depth, number = rng.randint(1, 6), rng.randint(search.LEAST, search.MOST)
    rest = rng.choice((rng.randint(0, 9), int(400 * rng.random() ** 2)))
    need = number + rest
    if rng.random() < 0.3:
        return [(f"{depth}: {rest} + {number} =", False), (f" {need}\n", True)]
    room = max(0, search.MOST - need)
    larger = {need + 1 + int(room * rng.random() ** 2) for _ in range(rng.randint(0, 4))} if room else set()
    parts = [(f"{depth}: {need} -", False)]
    for x in sorted(larger, reverse=True):
        parts += [(f" {x}", False), (" >", True)]
    return [*parts, (f" {number}", False), (f" = {rest}\n", True)]


def sums(tokenizer: Any, rng: random.Random, count: int) -> Batch:
    """Rows of sums as chains write them, labels on the results only: a small model learns finding facts long before it
    adds without fault, and a chain has few sums."""
    rows = []
    for _ in range(count):
        ids: list[int] = []
        while len(ids) < DRILL_TOKENS:
            ids += tokenizer(" " + a_sum(rng), add_special_tokens=False).input_ids
        own = torch.tensor([ids[:DRILL_TOKENS]])
        rows.append((own[0].tolist(), own.masked_fill(weigh(tokenizer, own) == 1, -100)[0].tolist()))
    inputs, labels = padded(rows, tokenizer.eos_token_id)
    return Batch(inputs, labels, torch.ones(labels.shape), None, inputs.numel())


def a_sum(rng: random.Random) -> str:
    """A step of a chain, with facts restated or without."""
    base, name = rng.sample(NAMES, 2)
    value = rng.randint(2, MOST)
    return relative(rng, name, base, value).step(value, restate=rng.random() < 0.5)


def padded(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, labels) of rows of (ids, labels)."""
    width = max(len(ids) for ids, _ in rows)
    inputs, labels = torch.full((len(rows), width), pad), torch.full((len(rows), width), -100)
    for i, (ids, own) in enumerate(rows):
        inputs[i, : len(ids)], labels[i, : len(own)] = torch.tensor(ids), torch.tensor(own)
    return inputs, labels


def weigh(tokenizer: Any, labels: torch.Tensor) -> torch.Tensor:
    """SUM_WEIGHT for the tokens right after an "=", 1 for the others: few of a chain's tokens are results."""
    equals = labels == tokenizer(" =", add_special_tokens=False).input_ids[-1]
    weights = torch.ones(labels.shape)
    for shift in range(1, 4):
        weights[:, shift:][equals[:, :-shift]] = SUM_WEIGHT
    return weights
