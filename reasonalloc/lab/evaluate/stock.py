"""Whether chains of the full cache are those of transformers' own cache, which an evaluation stands on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers.cache_utils import DynamicCache

from reasonalloc.config import Config
from reasonalloc.hf.attention import not_using
from reasonalloc.hf.check import TOLERANCE
from reasonalloc.hf.decode import Sampling, chains, generate
from reasonalloc.hf.tokens import encode_prompt, ends
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.provenance import Place, place

PROBLEMS, TOKENS = 2, 32


class Start(Place):
    """Where a run's model lies. differences: of its full cache's chains from those of transformers' own cache."""

    differences: list[str]


def start(model: Model, tokenizer: Tokenizer, prompts: Sequence[str]) -> Start:
    """Of a model that is to answer these prompts."""
    return {**place(model), "differences": differences(model, tokenizer, prompts)}


def differences(model: Model, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """What is different in the first tokens of greedy chains, by more than rounding; one for each prompt where it is.

    The first PROBLEMS prompts are looked at, TOKENS of each. Where two logits are level, either token is right.
    """
    asked = [(str(i), encode_prompt(tokenizer, x, "cpu")[0].tolist()) for i, x in enumerate(prompts[:PROBLEMS])]
    asked = [(key, ids) for key, ids in asked if ids]  # one without a token is an error when its turn comes
    if not asked:
        return []
    stop, pad, sampling = ends(model, tokenizer), tokenizer.pad_token_id or 0, Sampling(max_new_tokens=TOKENS)
    logits: dict[str, list[torch.Tensor]] = defaultdict(list)

    def watch(found: torch.Tensor, keys: Sequence[str], _: Sequence[int]) -> None:
        for key, row in zip(keys, found.float().cpu(), strict=True):
            logits[key].append(row)

    with not_using(model):
        cache = DynamicCache(config=model.config)
        stock = {x.key: x.ids for x in chains(model, cache, asked, stop, sampling, pad, watch=watch)}
    ours = {x.key: x.ids for x in generate(model, Config(method="full"), asked, stop, sampling, pad)}
    found = []
    for key, ids in stock.items():
        at = _first_difference(ids, ours[key])
        if at is None or _are_level(logits[key][at], ids[at], ours[key][at], TOLERANCE[model.dtype]):
            continue
        found.append(
            f"the full cache's answer to problem {int(key) + 1} is another than with transformers' cache from token"
            f" {at + 1} on: no row is to be believed"
        )
    return found


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    both = enumerate(zip(one, other, strict=False))  # where one has ended the other has too, or differs before
    return next((i for i, (a, b) in both if a != b), None)


def _are_level(logits: torch.Tensor, one: int, other: int, tolerance: float) -> bool:
    return float((logits[one] - logits[other]).abs() / logits.std().clamp(min=1e-12)) <= tolerance
