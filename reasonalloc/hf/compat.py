"""Where transformers 5.2 and the newest differ, in one place."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer

OLDEST, NEWEST_TESTED = "5.2.0", "5.23.0"


def transformers_supported() -> bool:
    return Version(transformers.__version__) >= Version(OLDEST)


def query_length(argument: int | torch.Tensor) -> int:
    """`get_mask_sizes` is given the number of queries since 5.4, the tensor of their positions before."""
    return argument if isinstance(argument, int) else int(argument.shape[0])


def stock_layers(model: Any) -> list[CacheLayerMixin]:
    """The cache layers that transformers itself would make for this model."""
    layers = DynamicCache(config=model.config).layers
    if not layers:
        raise ValueError(f"{type(model).__name__}: transformers makes no cache layers from its config")
    return list(layers)


def is_full_attention(layer: CacheLayerMixin) -> bool:
    """Whether a stock layer holds every token of plain attention: the ones whose budget can be managed."""
    return type(layer) is DynamicLayer
