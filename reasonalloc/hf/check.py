"""Whether a model computes with a ReasonAllocCache what it computes with transformers' own cache."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache

from reasonalloc.config import Config
from reasonalloc.hf.attention import activate, deactivate, is_active
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.tokens import left_padded
from reasonalloc.protocols import Model

# How far logits may differ, as a share of their spread: caches round in other places.
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.2, torch.float16: 0.03}
_PROMPT, _SHORT, _CHAIN = 40, 23, 24
_TIGHT = Config(method="rkv", budget=24, interval=8, window=4)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: differences as a share of the logits' spread, and the largest that counts as rounding.

    logits: of a chain with nothing evicted, against transformers' cache. rows: of a left-padded row against the same
    row alone, both cut to one budget; stock_rows: the same with transformers' cache, nothing cut. same_tokens: the row
    keeps in the batch what it keeps alone.
    """

    logits: float
    rows: float
    stock_rows: float
    same_tokens: bool
    tolerance: float

    @property
    def problem(self) -> str | None:
        """What is wrong; None if nothing is."""
        if not self.logits <= self.tolerance:
            return f"logits differ from those with transformers' cache by {self.logits:.2g} of their spread"
        if self.stock_rows <= self.tolerance and not (self.rows <= self.tolerance and self.same_tokens):
            return f"a row in a batch differs from the row alone by {self.rows:.2g} of the logits' spread"
        return None


def compare(model: Model, seed: int = 0) -> Comparison:
    """Runs a model for a prompt and a chain of random tokens on both kinds of cache; its attention is as before then.

    Raises what the model or ReasonAllocCache raises, ValueError where the model is refused.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(1, vocabulary, (2, _PROMPT + _CHAIN), generator=generator)
    prompts, chain = [ids[0, :_PROMPT], ids[1, _PROMPT - _SHORT : _PROMPT]], ids[:, _PROMPT:]
    was_active = is_active(model)
    deactivate(model)  # transformers' cache with the model's own attention
    try:
        with torch.no_grad():
            stock = _logits(model, _stock(model), prompts[:1], chain[:1])
            stock_batch = _logits(model, _stock(model), prompts, chain)[1]
            stock_single = _logits(model, _stock(model), prompts[1:], chain[1:])[0]
            full = ReasonAllocCache(model, Config(method="full"))
            ours = _logits(model, full, prompts[:1], chain[:1])
            cache, alone = (ReasonAllocCache(model, _TIGHT) for _ in range(2))
            batch = _logits(model, cache, prompts, chain)[1]
            single = _logits(model, alone, prompts[1:], chain[1:])[0]
    finally:
        activate(model) if was_active else deactivate(model)
    kept = [[each.positions(layer.index, row) for layer in cache.ragged] for each, row in ((cache, 1), (alone, 0))]
    same = all(np.array_equal(a, b) for x, y in zip(*kept, strict=True) for a, b in zip(x, y, strict=True))
    return Comparison(
        _difference(ours, stock),
        _difference(batch, single),
        _difference(stock_batch, stock_single),
        same,
        _TOLERANCE[model.dtype],
    )


def _stock(model: Model) -> DynamicCache:
    return DynamicCache(config=model.config)


def _logits(model: Model, cache: Cache, prompts: list[torch.Tensor], chain: torch.Tensor) -> torch.Tensor:
    """[rows, 1 + chain, V] float32 logits after each row's prompt and each token of its chain."""
    tokens, mask = (x.to(model.device) for x in left_padded(prompts))
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    takes = inspect.signature(model.forward).parameters
    found = []
    for i in range(chain.shape[1] + 1):
        options = {"position_ids": places} if "position_ids" in takes else {}
        out = model(input_ids=tokens, attention_mask=mask, use_cache=True, **cache_argument(cache), **options)
        found.append(out.logits[:, -1].float().cpu())
        if i < chain.shape[1]:
            tokens = chain[:, i : i + 1].to(model.device)
            mask, places = torch.nn.functional.pad(mask, (0, 1), value=1), places[:, -1:] + 1
    return torch.stack(found, 1)


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Infinity if one of them is not finite."""
    share = (ours - theirs).abs().max() / theirs.std().clamp(min=1e-12)
    return float(share) if bool(share.isfinite()) else float("inf")
