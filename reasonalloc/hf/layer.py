"""One layer of the cache: takes the new keys and values, attends, and is cut to its budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin

from reasonalloc import _core
from reasonalloc.hf.attention import sdpa
from reasonalloc.hf.compat import query_length

if TYPE_CHECKING:
    from reasonalloc.hf.cache import ReasonAllocCache


_Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class RaggedLayer(CacheLayerMixin):
    """Ragged heads of one attention layer.

    transformers calls `update` and then the attention function, which calls `attend`: only there are the queries
    known, so `update` hands the new keys and values through and the storing waits for `attend`. Accordingly the mask
    covers the new tokens alone (`get_mask_sizes`): what is cached is never padding and always visible to them.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False  # not for certain: what was evicted does not come back

    def __init__(self, owner: ReasonAllocCache, index: int, order: int) -> None:
        super().__init__()
        self.owner, self.index, self.order = owner, index, order
        self.core: _core.Layer | None = None
        self.heads = self.query_heads = self.head_dim = 0
        self.length = 0  # tokens given, padding and evicted ones included

    def __repr__(self) -> str:
        return f"RaggedLayer({self.index}, tokens={self.length})"

    @property
    def held(self) -> _core.Layer:
        """The layer's C object; RuntimeError before the first token."""
        if self.core is None:
            raise RuntimeError(f"layer {self.index} of the cache is empty")
        return self.core

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        key_states._reasonalloc = self  # type: ignore[attr-defined]
        return key_states, value_states

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Stores the new tokens and returns their attention, [B, T, Hq, D]."""
        del key._reasonalloc  # type: ignore[attr-defined]
        owner = self.owner
        before = self.seen() if self.index == 0 else 0
        try:
            core = self.core if self.core is not None else self._prepare(query, key)
            rows, heads, tokens, head_dim = query.shape
            prefill = self.length == 0 and tokens > 1
            real = owner.real_tokens(attention_mask, tokens, prefill) if attention_mask is not None else None
            begin, index = owner.new_tokens(real, rows)
            scale = float(scaling) if scaling is not None else head_dim**-0.5
            q, k, v = map(_rows, in_host_memory(query, key, value))
            if prefill:
                out = sdpa(module, query, key, value, attention_mask, scaling, **kwargs)
                self._step(core, q, k, v, None, scale, None, begin, index)
                owner.measure(self, query, key, real)
            else:
                # What stands between a row's tokens is padding, whose attention is 0.
                out = (q.new_empty if begin is None else q.new_zeros)((rows, tokens, heads, head_dim))
                self._step(core, q, k, v, out, scale, owner.cut_in, begin, index)
                out = out.to(query.device)
            self.length += tokens
            owner.leave(self, tokens, padded=real is not None and not prefill)
        except BaseException as error:
            owner.close_if_changed(self, before, error)
            raise
        return out

    def seen(self) -> int:
        """Tokens that all rows together have been given, padding not counted."""
        return sum(self.core.tokens(row) for row in range(self.core.rows)) if self.core is not None else 0

    def _prepare(self, query: torch.Tensor, key: torch.Tensor) -> _core.Layer:
        self.lazy_initialization(key, key)
        self.heads, self.query_heads, self.head_dim = key.shape[1], query.shape[1], key.shape[3]
        self.core = _core.Layer(
            self.owner.pool_for(key).core,
            key.shape[0],
            self.heads,
            self.query_heads,
            self.owner.policy.schedule.window,
            self.owner.policy.core_scorer,
            self.owner.policy.ahead,
        )
        return self.core

    def _step(self, core: _core.Layer, *arguments: Any) -> None:
        try:
            while missing := core.step(*arguments):
                self.owner.pool.grow(missing)
        except (ValueError, TypeError) as error:
            raise type(error)(f"layer {self.index}: {error}") from None

    # ---- what transformers asks ----

    def get_mask_sizes(self, argument: int | torch.Tensor) -> tuple[int, int]:
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
        if self.core is not None:
            self.core.reset()
        self.core, self.length, self.is_initialized = None, 0, False

    # Rows are moved by the cache as a whole, so that its figures of each row move along.
    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        raise NotImplementedError("call the method of the cache")

    def crop(self, tokens: int) -> None:
        raise NotImplementedError("call the method of the cache")


def in_host_memory(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> _Three:
    """The three where the pages are."""
    return (query, key, value) if query.is_cpu else copied(query, key, value)


def copied(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> _Three:
    """From an accelerator, in one piece: each copy waits for the device."""
    parts = torch.cat([query, key, value], 1).cpu()
    first, second = query.shape[1], query.shape[1] + key.shape[1]
    return parts[:, :first], parts[:, first:second], parts[:, second:]


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def real_tokens(mask: torch.Tensor, tokens: int, prefill: bool) -> torch.Tensor | None:
    """[B, T] flags of the new tokens that are not padding, in host memory; None if all are real.

    mask: [B, 1, T, T], over the new tokens. A prefill may hold any pattern (it runs on stock attention); later steps
    are causal, and a mask that asks for something else is an error.
    """
    if mask.shape[-1] != tokens:
        raise ValueError(
            f"the attention mask covers {mask.shape[-1]} tokens, but {tokens} are new: masks over cached tokens are not"
            " supported, since their heads hold different ones"
        )
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0  # additive masks hold 0 where a token is seen
    real = seen[:, -1]
    if not prefill:
        wanted = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril() & real[:, None, :]
        if not torch.equal(seen & real[:, :, None], wanted & real[:, :, None]):
            raise ValueError("only causal masks with padding are supported once the cache holds tokens")
    return None if bool(real.all()) else real.cpu().contiguous()
