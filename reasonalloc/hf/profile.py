"""Measuring the layer wave of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import torch
import transformers
from tqdm.auto import tqdm
from transformers.cache_utils import DynamicCache

from reasonalloc.fingerprint import digest, fingerprint
from reasonalloc.hf.attention import AttentionSpec
from reasonalloc.hf.decode import Sampling, chains
from reasonalloc.hf.tokens import encode_prompt, ends
from reasonalloc.hf.watch import of_layers
from reasonalloc.policy.wave import PROBE_QUERIES, WaveProfile, demand
from reasonalloc.protocols import Model, Tokenizer

MOST_PROMPTS = 8


def measure(model: Model, ids: torch.Tensor, rho: float = 0.93, queries: int = PROBE_QUERIES) -> dict[int, float]:
    """Demand of every layer that can have a budget for one sequence of token ids [1, n], by layer index."""

    def look(q: torch.Tensor, k: torch.Tensor, spec: AttentionSpec) -> float:
        return demand(q[:, -queries:], k, rho, spec.scale, spec.softcap, spec.sinks)

    return of_layers(model, ids, look)


def profile(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    rho: float = 0.93,
    queries: int = PROBE_QUERIES,
    progress: bool = True,
) -> WaveProfile:
    """Measures the layer wave of a model on at most 8 prompts with their generated chains.

    For each prompt a chain of up to max_new_tokens is generated greedily with the full cache, all in one batch; the
    demand of each layer (`demand`) is then taken from the last `queries` tokens of prompt and chain, and averaged over
    the prompts.
    progress: show a bar on standard error. Raises ValueError for no or more than 8 prompts.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise ValueError(f"a wave is measured on 1 to {MOST_PROMPTS} prompts, got {len(prompts)}")
    if not 0 < rho < 1 or queries < 1 or max_new_tokens < 1:
        raise ValueError(
            f"rho must lie in (0, 1), queries and max_new_tokens be positive; got {rho}, {queries}, {max_new_tokens}"
        )
    sums: dict[int, float] = {}
    for chain in chains_of(model, tokenizer, prompts, max_new_tokens, progress):
        for layer, value in measure(model, chain, rho, queries).items():
            sums[layer] = sums.get(layer, 0.0) + value / len(prompts)
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    source = {
        "model": name,
        "config": digest(fingerprint(model)),
        "tokenizer": digest(sorted(vocabulary.items())),
        "prompts": digest(prompts),
        "prompt_count": len(prompts),
        "max_new_tokens": max_new_tokens,
        "queries": queries,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return WaveProfile(tuple(sums.values()), tuple(sums), fingerprint(model), rho, source)


def chains_of(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[str], most: int, progress: bool
) -> Iterator[torch.Tensor]:
    """Token ids [1, n] of each prompt with its greedy chain, end token included; all are generated in one batch."""
    every = [encode_prompt(tokenizer, prompt, "cpu")[0].tolist() for prompt in prompts]
    keyed = [(str(i), ids) for i, ids in enumerate(every)]
    cache, sampling = DynamicCache(config=model.config), Sampling(max_new_tokens=most)
    with tqdm(desc="generating chains", unit="token", total=most, disable=not progress) as bar:
        made = {
            chain.key: chain.ids
            for chain in chains(model, cache, keyed, ends(model, tokenizer), sampling, progress=lambda _: bar.update())
        }
    for key, ids in keyed:
        yield torch.tensor([[*ids, *made[key]]], device=model.device)
