"""Real queries, keys and values: what a model's attention sees while it reads MATH-500."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.problems import math500
from reasonalloc.protocols import Model, Tokenizer

_NAME = "reasonalloc-bench-states"
_CHUNK = 512  # tokens a forward pass: the logits of attention grow with chunk x length
_taken: dict[int, list[torch.Tensor]] = {}


@dataclass(frozen=True)
class States:
    """One layer's queries [Hq, n, d], keys and values [H, n, d] of one sequence, after position encoding."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.keys.shape[1]

    def part(self, begin: int, count: int) -> States:
        """`count` tokens from `begin` on; after the last token the first follows."""
        index = torch.arange(begin, begin + count) % self.tokens
        return States(self.queries[:, index], self.keys[:, index], self.values[:, index])


def _remember(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if module.layer_idx in _taken:
        _taken[module.layer_idx].append(query[0].detach().clone())
    return sdpa_attention_forward(module, query, *args, **kwargs)


AttentionInterface.register(_NAME, _remember)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def _remembering(model: Model, layers: Sequence[int]) -> Iterator[None]:
    before = model.config._attn_implementation
    _taken.update({i: [] for i in layers})
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _taken.clear()


def text_ids(tokenizer: Tokenizer, tokens: int) -> torch.Tensor:
    """[1, tokens] ids of MATH-500's problems, one after the other."""
    ids: list[int] = []
    for problem in math500():
        ids += tokenizer(problem.problem + "\n\n").input_ids
        if len(ids) >= tokens:
            return torch.tensor([ids[:tokens]])
    raise ValueError(f"MATH-500 has {len(ids)} tokens for this tokenizer, asked for {tokens}")


def read(model: Model, ids: torch.Tensor, layers: Sequence[int] | None = None) -> list[States]:
    """States of these layers (None: all) after the model has read ids [1, n]."""
    wanted = list(layers) if layers is not None else list(range(model.config.num_hidden_layers))
    cache = DynamicCache(config=model.config)
    with _remembering(model, wanted), torch.no_grad():
        for chunk in ids.split(_CHUNK, dim=1):
            model(input_ids=chunk, **cache_argument(cache), use_cache=True, logits_to_keep=1)
        return [
            States(torch.cat(_taken[i], 1), cache.layers[i].keys[0].clone(), cache.layers[i].values[0].clone())
            for i in wanted
        ]


def side_by_side(layers: Sequence[States], heads: int, group: int) -> States:
    """`heads` KV heads of twice the size, each from two KV heads of one layer, with `group` query heads each.

    Pairs are spread over the layers; where a layer has fewer query heads a KV head than asked, they come round again
    in other pairs.
    """
    own_heads = layers[0].keys.shape[0]
    own_group = layers[0].queries.shape[0] // own_heads
    if own_heads < 2:
        raise ValueError("two KV heads a layer are needed to put side by side, the model has one")
    queries, keys, values = [], [], []
    for i in range(heads):
        layer = layers[i * len(layers) // heads]
        a, b = i % own_heads, (i + 1) % own_heads
        keys.append(torch.cat([layer.keys[a], layer.keys[b]], -1))
        values.append(torch.cat([layer.values[a], layer.values[b]], -1))
        for j in range(group):
            first, second = j % own_group, (j + j // own_group) % own_group
            parts = (layer.queries[a * own_group + first], layer.queries[b * own_group + second])
            queries.append(torch.cat(parts, -1))
    return States(torch.stack(queries), torch.stack(keys), torch.stack(values))


def uncorrelated(heads: int, group: int, tokens: int, head_dim: int, seed: int = 0) -> States:
    """Random ones: no key is like another, the worst case of a search for the last similar key."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (heads * group, heads, heads)
    return States(*(torch.randn(x, tokens, head_dim, generator=generator) for x in sizes))
