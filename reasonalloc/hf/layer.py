"""One layer of the cache: takes the new keys and values, attends, and is cut to its budget."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import CacheLayerMixin

from reasonalloc import _core
from reasonalloc.hf.attention import AttentionSpec
from reasonalloc.hf.columns import NewTokens
from reasonalloc.hf.compat import query_length
from reasonalloc.hf.states import Three
from reasonalloc.policy.cold import Cold
from reasonalloc.policy.layers import LayerAllocator
from reasonalloc.policy.scorers import StatArguments
from reasonalloc.store.pages import PagePool


class RaggedLayer(CacheLayerMixin):
    """Ragged heads of one attention layer.

    transformers calls `update` and then the attention function: only there are the queries known, so `update` hands
    the new keys and values through, and the cache stores them when attention comes. Accordingly the mask covers the
    new tokens alone (`get_mask_sizes`): what is cached is never padding and always visible to them.

    index: of the layer in the model. order: among the layers with a budget. window: newest queries that scores need.
    scorer: whose statistics the core keeps. ahead: tokens to make room for at a time. whole_masks: masks cover cached
    tokens too, because other layers need that of the mask they share. statistics: how the core gathers what the scorer
    needs of every step. cold: where evicted tokens go, None: away.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False  # not for certain: what was evicted does not come back

    def __init__(
        self,
        index: int,
        order: int,
        window: int,
        scorer: str | None,
        ahead: int,
        whole_masks: bool = False,
        statistics: StatArguments | None = None,
        cold: Cold | None = None,
    ) -> None:
        super().__init__()
        del self.keys, self.values  # see __getattr__
        self.index, self.order, self.whole_masks = index, order, whole_masks
        self.window, self.scorer, self.ahead, self.statistics = window, scorer, ahead, statistics
        self.cold = cold
        self._core: _core.Layer | None = None  # the layer's C object, None while it is empty
        self.prepare: Callable[[_core.Layer, int], None] | None = None  # of a C object that was just made
        self._pool: PagePool | None = None  # where its pages are from
        self.heads = self.query_heads = self.head_dim = 0
        self.sinks: Any = None  # [Hq] float32, logits of attention sinks in the newest step, as `_core` takes them
        self.length = 0  # tokens given, padding and evicted ones included
        self.probes: list[torch.Tensor] = []  # [Hq, n, D] of each row, until its wave is measured

    def __repr__(self) -> str:
        return f"RaggedLayer({self.index}, tokens={self.length})"

    def __getattr__(self, name: str) -> Any:
        what = f"{type(self).__name__} has no attribute {name}"
        if name in ("keys", "values"):
            what = f"a layer of ReasonAllocCache has no {name} as one tensor: each head holds its own tokens"
        raise AttributeError(what)

    def __deepcopy__(self, memo: dict[int, object]) -> RaggedLayer:
        twin = copy(self)
        twin.probes = list(self.probes)
        twin._core = None if self._core is None else self._core.copy()
        return twin

    @property
    def is_empty(self) -> bool:
        """No token has come yet."""
        return self._core is None

    @property
    def core(self) -> _core.Layer:
        """The layer's C object; RuntimeError before the first token."""
        if self._core is None:
            raise RuntimeError(f"layer {self.index} of the cache is empty")
        return self._core

    @property
    def pool(self) -> PagePool:
        """Where its pages are from; RuntimeError before the first token."""
        if self._pool is None:
            raise RuntimeError(f"layer {self.index} of the cache is empty")
        return self._pool

    def start(self, pool: PagePool, rows: int, key_heads: int, query_heads: int, head_dim: int) -> _core.Layer:
        """Makes the C object, for tokens of this shape."""
        self.heads, self.query_heads, self.head_dim, self._pool = key_heads, query_heads, head_dim, pool
        self._core = _core.Layer(
            pool.core, rows, key_heads, query_heads, self.window, self.scorer, self.ahead, self.statistics
        )
        if self.cold is not None:
            self._core.keep_cold(self.cold.limit, self.cold.cold_format)
        if self.prepare is not None:
            self.prepare(self._core, self.index)
        return self._core

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return key_states, value_states

    def step(
        self,
        pool: PagePool,
        states: Three,
        spec: AttentionSpec,
        new: NewTokens,
        out: torch.Tensor | None = None,
        cut_in: npt.NDArray[np.int64] | None = None,
        prompt: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Stores new tokens and, where wanted, writes their attention into out [B, T, Hq, D].

        states: queries [B, Hq, T, D], keys and values [B, H, T, D], on the pool's device like out. cut_in: [B] steps
        before each row's next cut. prompt: [B] rows that are still in their prompt, None: none, or nobody asks.
        """
        query, key, value = states
        core = self._core
        if core is None:
            self.lazy_initialization(key, key)
            core = self.start(pool, key.shape[0], key.shape[1], query.shape[1], key.shape[3])
        softcap = spec.softcap or 0.0
        sinks = self.sinks = None if spec.sinks is None else pool.sinks(spec.sinks)
        begin, index, visible = new.begin, new.index, new.visible
        try:  # pool.step, written out: every layer of every decode step comes here
            while missing := core.step(
                query, key, value, out, spec.scale, cut_in, begin, index, softcap, sinks, visible, prompt
            ):
                pool.grow(missing)
        except (ValueError, TypeError) as error:
            raise type(error)(f"layer {self.index}: {error}") from None

    def token_count(self) -> int:
        """Tokens that all rows together have been given, padding not counted."""
        return sum(self._core.tokens(row) for row in range(self._core.rows)) if self._core is not None else 0

    # ---- the layer's part of the wave ----

    def keep_probes(self, query: torch.Tensor, new: NewTokens, most: int) -> None:
        """Keeps the newest `most` queries of each row. query: [B, Hq, T, D], of which `new` are real."""
        self.probes = self.probes or [query[row, :, :0] for row in range(len(query))]
        for row, kept in enumerate(self.probes):
            queries = query[row]
            if new.begin is not None and new.index is not None:
                queries = queries[:, new.index[new.begin[row] : new.begin[row + 1]]]
            self.probes[row] = torch.cat([kept, queries], 1)[:, -most:].detach().clone()

    def demand(self, row: int, allocator: LayerAllocator) -> float:
        """How many tokens the newest queries of a row need, by what the layer holds; the queries are let go."""
        query = self.probes[row].cpu()
        self.probes[row] = query[:, :0]
        tokens = self.core.tokens(row)
        if not tokens or not query.shape[1]:
            return 1.0
        keys = np.empty((self.heads, tokens, self.head_dim), np.float32)
        for head in range(self.heads):
            self.core.read(row, head, False, keys[head])
        given = (query, torch.from_numpy(keys), self.core.scale, self.core.softcap or None)
        if self.sinks is None:  # an allocator of one's own may take no more than the others
            return allocator.demand(*given)
        return allocator.demand(*given, torch.as_tensor(self.sinks).cpu())

    def crop_probes(self, tokens: int) -> None:
        """The newest tokens of each row were taken back."""
        self.probes = [probes[:, : max(0, probes.shape[1] - tokens)] for probes in self.probes]

    def move_probes(self, source: npt.NDArray[np.int64]) -> None:
        """Row i becomes row source[i]."""
        self.probes = [self.probes[i] for i in source] if self.probes else []

    # ---- what transformers asks ----

    def get_mask_sizes(self, argument: int | torch.Tensor) -> tuple[int, int]:
        if self.whole_masks:
            return self.length + query_length(argument), 0
        return query_length(argument), self.length

    def get_seq_length(self) -> int:
        """Logical length: positions go on whatever was evicted."""
        return self.length

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # its name up to transformers 5.10
        return -1

    def offload(self) -> None:
        raise NotImplementedError("ReasonAllocCache cannot be offloaded")

    def prefetch(self) -> None:
        raise NotImplementedError("ReasonAllocCache cannot be offloaded")

    def reset(self) -> None:
        if self._core is not None:
            self._core.reset()
        self.drop()
        self.length, self.is_initialized, self.probes = 0, False, []

    def drop(self) -> None:
        """Forgets the C object."""
        self._core = self._pool = None

    # Rows are moved by the cache as a whole, so that its figures of each row move along.
    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        raise NotImplementedError("call the method of the cache")

    def crop(self, tokens: int) -> None:
        raise NotImplementedError("call the method of the cache")
