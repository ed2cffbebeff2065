"""ReasonAllocCache: a transformers Cache that stays inside its budget."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from reasonalloc import _core
from reasonalloc.config import Config
from reasonalloc.hf.attention import activate, is_active
from reasonalloc.hf.compat import is_full_attention, stock_layers, unwrapped
from reasonalloc.hf.layer import RaggedLayer, real_tokens
from reasonalloc.policy.budgets import Budgets
from reasonalloc.policy.cut import Cutter
from reasonalloc.policy.wave import PROBE_QUERIES, demand
from reasonalloc.score import ATTENTION_SCORERS
from reasonalloc.store.pages import DTYPES, PAGE_TOKENS, PagePool
from reasonalloc.trace import Trace, recorder


class _Unchanged(ValueError):
    """A request was refused, and no layer has changed."""


class ReasonAllocCache(Cache):
    """A cache for `model.generate(past_key_values=...)` (`cache=...` from transformers 5.24 on), or any forward pass.

    Layers with full attention keep ragged heads inside the budget of `config`; layers with a sliding window keep
    transformers' own cache. Making one switches the model to the library's attention (`ra.uninstall(model)` undoes it).

    Rows of a batch never see each other or padding: a row gives what it gives alone. After an error inside a forward
    pass the cache is closed: each further use says so until `reset()`. An error that is found before anything changed
    leaves it usable.

    The cache and its attention are in host memory, wherever the model lies: a layer on an accelerator sends its new
    queries, keys and values over and gets its attention back.

    record: keep every cut for `trace`. The same tokens stay; a cut takes longer.

    Raises ValueError for a model without full-attention layers, a profile of another model or a budget that does not
    fit; TypeError for dtypes other than float32, bfloat16, float16.
    """

    def __init__(self, model: Any, config: Config, *, record: bool = False) -> None:
        method, model = config.resolve(), unwrapped(model)
        stock = stock_layers(model)
        managed = [i for i, layer in enumerate(stock) if is_full_attention(layer)]
        if not managed:
            raise ValueError(
                f"{type(model).__name__}: no layer has full attention, so there is nothing to give a budget to"
                " (sliding windows keep their own cache; where chains stay shorter than the window, set"
                " model.config.sliding_window = None)"
            )
        if config.profile is not None:
            config.profile.check(model, managed)
        if model.dtype not in DTYPES:
            raise TypeError(f"the cache holds float32, bfloat16 and float16, the model is {model.dtype}")
        layers = [RaggedLayer(self, i, managed.index(i)) if i in managed else x for i, x in enumerate(stock)]
        super().__init__(layers=layers)
        self.model, self.config, self.method, self.record = model, config, method, record
        self.ragged: list[RaggedLayer] = [x for x in layers if isinstance(x, RaggedLayer)]
        # The scorer whose statistics the C core keeps, and whether attention gathers some of them for the next score.
        self.core_scorer = None if method.unlimited or method.scores_in_python else method.scorer
        self._notes = self.core_scorer in ATTENTION_SCORERS
        self.ahead = 0 if method.unlimited else method.interval
        # Layers that store keys, in the order in which a forward pass comes to them.
        self._turns = [i for i, layer in enumerate(layers) if isinstance(layer, CacheLayerMixin)]
        activate(model)
        self._clear()

    def _clear(self) -> None:
        self._pool: PagePool | None = None
        self._rows = 0
        self._turn = 0  # whose turn it is among self._turns
        self._closed: str | None = None
        self._steps = self._since = self._routings = self._byte_sum = 0
        self._uncut = 0  # tokens that crop could take back: those since anything was evicted
        self._due = self._prefilling = False
        self._mask: tuple[Any, torch.Tensor | None] = (None, None)  # of this step, and its real tokens
        self._new: tuple[Any, Any, Any] = (None, None, None)  # real tokens of this step, and where they stand
        self._good_keys: Any = None  # shapes and dtypes that have been checked
        self.cut_in: Any = None  # [rows] steps that follow before the next cut, for statistics
        self._cutter: Cutter | None = None
        self._cut_seconds = 0.0

    # ---- a forward pass: update each layer in turn, which for ours ends with `leave` ----

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """transformers gives a layer its new keys and values. Checks everything before anything changes."""
        self._check_turn(layer_idx == self._turns[self._turn])
        if self._turn == 0:
            self._begin_step(key_states)
        layer = self.layers[layer_idx]
        if isinstance(layer, RaggedLayer):
            self._check_keys(layer, key_states, value_states)
            return layer.update(key_states, value_states)
        result = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self._turn = (self._turn + 1) % len(self._turns)
        return result

    def _begin_step(self, key: torch.Tensor) -> None:
        if not is_active(self.model):
            raise RuntimeError(
                "the model no longer uses reasonalloc's attention (uninstalled?), so this cache cannot serve it"
            )
        self._mask, self._new = (None, None), (None, None, None)  # a step that failed may have left some
        rows, _, tokens, _ = key.shape
        first = not self.ragged[0].length
        if not first and rows != self._rows:
            raise ValueError(f"the cache holds {self._rows} rows, now is given a batch of {rows}; reset() it first")
        if first:
            self._rows = rows
            self._cutter = self._good_keys = None
            for layer in self.ragged:
                layer.core = None  # left over where a first step failed
        # The first step is the prefill even if it is of one token: in a batch that row would be beside longer ones.
        self._prefilling = first or (tokens > 1 and self._prefilling)
        self._due = not self.method.unlimited and (first or self._since + tokens >= self.method.interval)
        left = self.method.interval - self._since - tokens
        self.cut_in = np.full(rows, 0 if self._due else left if self._notes else -1)

    def _check_keys(self, layer: RaggedLayer, key: torch.Tensor, value: torch.Tensor) -> None:
        kind = (key.shape, value.shape, key.dtype, value.dtype, key.is_meta)
        if kind == self._good_keys:
            return
        _, heads, _, head_dim = key.shape
        if key.is_meta:
            raise ValueError("keys are on the device meta, which holds no data: load the model's weights first")
        if key.dtype not in DTYPES:
            raise TypeError(f"the cache holds float32, bfloat16 and float16, got {key.dtype}")
        if head_dim > _core.MAX_HEAD_DIM:
            raise ValueError(f"head sizes up to {_core.MAX_HEAD_DIM} are supported, got {head_dim}")
        if value.shape != key.shape:
            raise ValueError(f"keys {list(key.shape)} and values {list(value.shape)} must have one shape")
        known = self.ragged[0]
        if known.core is not None and (heads, head_dim) != (known.heads, known.head_dim):
            raise ValueError(
                f"layer {layer.index} is given keys {list(key.shape)}, but the cache holds {known.heads} heads of size"
                f" {known.head_dim}"
            )
        if self._cutter is None:
            budgets = Budgets(self.config, self.method, len(self.ragged), heads, self._page_bytes(key))
            budgets.start(self._rows)  # raises if the budget does not fit this batch
            self._cutter = self._make_cutter(budgets)
        if known.core is not None:
            self._good_keys = kind

    def _make_cutter(self, budgets: Budgets) -> Cutter:
        return Cutter(self.ragged, self.config, self.method, budgets, self._make_recorder())

    def _make_recorder(self) -> recorder.Recorder | None:
        return recorder.Recorder(self._rows) if self.record else None

    @staticmethod
    def _page_bytes(key: torch.Tensor) -> int:
        return 2 * PAGE_TOKENS * key.shape[3] * key.element_size()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"the cache is closed after an error ({self._closed}); call reset() to use it again")

    def _check_turn(self, in_turn: bool) -> None:
        self._check_open()
        if not in_turn:
            self._closed = "a forward pass was interrupted between layers"
            self._check_open()

    def close_if_changed(self, layer: RaggedLayer, before: int, error: BaseException) -> None:
        """A layer failed in its turn: closes the cache if something has changed. before: what `layer.seen` gave."""
        if layer.index or layer.seen() != before:
            self._closed = f"{type(error).__name__}: {error}"

    def real_tokens(self, mask: torch.Tensor, tokens: int, prefill: bool) -> torch.Tensor | None:
        """As layer.real_tokens; all layers of a step are given one mask, which is looked at once."""
        if self._mask[0] is not mask:
            self._mask = (mask, real_tokens(mask, tokens, prefill))
        return self._mask[1]

    def new_tokens(self, real: torch.Tensor | None, rows: int) -> tuple[Any, Any]:
        """(begin [rows + 1], index): where each row's tokens that are not padding stand; (None, None) if all are."""
        if real is None:
            return None, None
        if self._new[0] is not real:
            flags = real.numpy()
            begin = np.zeros(rows + 1, np.int64)
            np.cumsum(flags.sum(1), out=begin[1:])
            self._new = (real, begin, np.ascontiguousarray(np.nonzero(flags)[1], np.int64))
        return self._new[1], self._new[2]

    def measure(self, layer: RaggedLayer, query: torch.Tensor, key: torch.Tensor, real: torch.Tensor | None) -> None:
        """Takes a layer's part of the wave from the first prefill, where a method needs it and no profile was given."""
        budgets = self.cutter.budgets
        if not budgets.measures:
            return
        for row in range(query.shape[0]):
            q, k = query[row].detach(), key[row].detach()
            if real is not None:
                q, k = q[:, real[row]], k[:, real[row]]
            budgets.demand[row, layer.order] = demand(q[:, -PROBE_QUERIES:], k, self.config.rho) if k.shape[1] else 1.0

    def leave(self, layer: RaggedLayer, tokens: int, padded: bool) -> None:
        """A layer has stored and attended; cuts what is due, closes the step after the last layer."""
        last = layer.order == len(self.ragged) - 1
        if self._prefilling and layer.order == 0:
            self.cutter.prompt = np.array([layer.held.tokens(row) for row in range(self._rows)])
        if self._due:
            start = time.perf_counter()
            if not self.cutter.budgets.waits:  # at once, so that a long prompt is whole in one layer at a time
                self.cutter.cut([layer], self.pool)
            elif last:  # the wave is measured in the last layer only
                self.cutter.cut(self.ragged, self.pool)
            self._cut_seconds += time.perf_counter() - start
        self._turn = (self._turn + 1) % len(self._turns)
        if last:
            self._end_step(tokens, padded)

    def _end_step(self, tokens: int, padded: bool) -> None:
        self._since = 0 if self._due else self._since + tokens
        cut = self.cutter.take_flag()
        self._uncut = 0 if cut or padded else self._uncut + tokens  # padding amid tokens: rows differ in what is newest
        self._routings += cut
        if self._due:
            heads = self._rows * sum(layer.heads for layer in self.ragged)
            self.pool.trim(keep_free=heads * (self.method.interval // PAGE_TOKENS + 1))
        self.cutter.budgets.waits = False
        self._steps += 1
        self._mask, self._new = (None, None), (None, None, None)
        self._byte_sum += self.pool.bytes

    def pool_for(self, key: torch.Tensor) -> PagePool:
        if self._pool is None:
            self._pool = PagePool(key.dtype, key.shape[3])
        return self._pool

    @property
    def cutter(self) -> Cutter:
        if self._cutter is None:
            raise RuntimeError("the cache is empty")
        return self._cutter

    @property
    def pool(self) -> PagePool:
        if self._pool is None:
            raise RuntimeError("the cache is empty")
        return self._pool

    # ---- rows and lengths ----

    def reset(self) -> None:
        """Empties the cache and opens it again; all pages go home."""
        for layer in self.ragged:
            layer.reset()
        # Fresh ones for the rest: up to transformers 5.10 a reset layer keeps its shape and attends to zeros.
        stock = stock_layers(self.model)
        self.layers: list[Any] = [x if isinstance(x, RaggedLayer) else stock[i] for i, x in enumerate(self.layers)]
        self._clear()

    @contextmanager
    def _all_or_closed(self) -> Iterator[None]:
        """Layers are changed one by one: the cache is closed if one of them fails."""
        self._check_turn(self._turn == 0)
        try:
            yield
        except _Unchanged:
            raise
        except BaseException as error:
            self._closed = f"{type(error).__name__}: {error}"
            raise

    def _move_rows(self, source: torch.Tensor, method: str, argument: Any) -> None:
        """Row i becomes row source[i]; the layers that are not ours do it by their own method."""
        self._check_turn(self._turn == 0)
        if not self.ragged[0].length:
            return
        rows = np.ascontiguousarray(source.detach().cpu().numpy().reshape(-1), dtype=np.int64)
        if not len(rows) or rows.min() < 0 or rows.max() >= self._rows:
            raise ValueError(f"row numbers must lie in 0..{self._rows - 1}, got {rows.tolist()}")
        with self._all_or_closed():
            for layer in self.layers:
                if isinstance(layer, RaggedLayer):
                    layer.held.reorder(rows)
                else:
                    getattr(layer, method)(argument)
            self.cutter.move_rows(rows)
            self._rows = len(rows)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes row beam_idx[i]; pages are shared and copied on write."""
        self._move_rows(beam_idx, "reorder_cache", beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one after the other, sharing pages."""
        self._move_rows(torch.arange(self._rows).repeat_interleave(repeats), "batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows named."""
        indices = indices.cpu()  # the layers that are not ours may lie on several devices
        self._move_rows(torch.arange(self._rows)[indices], "batch_select_indices", indices)

    def crop(self, tokens: int) -> None:
        """Forgets the newest -tokens tokens (tokens < 0), or all but the first `tokens` (tokens > 0).

        Possible as far back as the last cut that evicted something: what went then does not come back. Raises
        ValueError, with nothing changed, where it is not.
        """
        self._check_turn(self._turn == 0)
        length = self.ragged[0].length
        remove = -tokens if tokens <= 0 else max(0, length - tokens)
        if remove > self._uncut:
            raise ValueError(
                f"cannot crop {remove} of {length} tokens: only the newest {self._uncut} came after the last eviction,"
                " and what was evicted does not come back"
            )
        shortest = 0
        if remove:
            shortest = min(self.ragged[0].held.tokens(row) for row in range(self._rows))
            if remove > shortest:
                raise ValueError(f"cannot crop {remove} tokens: a row has only {shortest} that are not padding")
        with self._all_or_closed():
            self._crop_others(remove)
            for layer in self.ragged if remove else ():
                layer.held.crop(remove)
                layer.length -= remove
            if remove:
                self._since, self._uncut = max(0, self._since - remove), self._uncut - remove
                self.cutter.forget_prompt_beyond(shortest - remove)

    def _crop_others(self, remove: int) -> None:
        """Crops the layers that are not ours, or raises ValueError with none of them changed."""
        others = [(i, x) for i, x in enumerate(self.layers) if not isinstance(x, RaggedLayer)]
        before = [{k: dict(v) if isinstance(v, dict) else v for k, v in vars(layer).items()} for _, layer in others]
        for number, layer in others:
            # crop(0) ends the recording of the past; before 5.10, where there is none, it empties the layer
            if not remove and not hasattr(layer, "record_past"):
                continue
            try:
                layer.crop(-remove)
            except Exception as error:
                for (_, changed), state in zip(others, before, strict=True):
                    vars(changed).update(state)
                raise _Unchanged(f"layer {number} ({type(layer).__name__}) cannot be cropped: {error}") from error

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` can take back the newest token; what it cannot is said there."""
        others = all(
            getattr(layer, "is_croppable", False) for layer in self.layers if not isinstance(layer, RaggedLayer)
        )
        return others and (self._uncut > 0 or not self.ragged[0].length)

    # ---- figures ----

    def positions(self, layer: int, row: int = 0) -> list[np.ndarray]:
        """Positions that each KV head of a layer still holds, ascending; 0 is the row's first real token."""
        ragged = {x.index: x for x in self.ragged}.get(layer)
        if ragged is None:
            raise ValueError(f"layer {layer} has no budget; those that have are {[x.index for x in self.ragged]}")
        if ragged.core is None:
            return []
        return [np.frombuffer(ragged.core.positions(row, h), np.int32) for h in range(ragged.heads)]

    def slots(self) -> np.ndarray:
        """[batch, L, H] slots that each KV head of the layers with a budget keeps now, int64."""
        slots = np.zeros((self._rows, len(self.ragged), max((x.heads for x in self.ragged), default=0)), dtype=np.int64)
        for layer in self.ragged:
            if layer.core is not None:
                own = np.zeros((self._rows, layer.heads), dtype=np.int64)
                layer.core.slots(own)
                slots[:, layer.order] = own
        return slots

    def page_bytes_by_row(self) -> np.ndarray:
        """[batch] bytes of the pages that each row uses now; a page that rows share counts for each of them."""
        if self._pool is None:
            return np.zeros(self._rows, dtype=np.int64)
        pages = -(-self.slots() // PAGE_TOKENS)
        return np.asarray(pages.sum((1, 2)) * self._pool.core.page_bytes)

    def trace(self, ids: Any, tokenizer: Any = None, row: int = 0, model_id: str = "") -> Trace:
        """Every cut of a row so far, if the cache was made with record=True.

        ids: [n] the row's token ids (tensor, array or list) without padding; a last one that the cache was not given,
        as after `generate`, is left out. tokenizer: for the tokens' text. model_id: what the trace calls the model;
        by default transformers' name of it. Raises ValueError for ids of another length and RuntimeError for a cache
        that does not record, is empty or is closed.
        """
        self._check_turn(self._turn == 0)
        if self.cutter.recorder is None:
            raise RuntimeError("the cache does not record: make it with ReasonAllocCache(model, config, record=True)")
        if not 0 <= row < self._rows:
            raise ValueError(f"row numbers must lie in 0..{self._rows - 1}, got {row}")
        return recorder.trace(self, self.cutter.recorder, ids, tokenizer, row, model_id)

    def stats(self) -> dict[str, Any]:
        """Figures since creation or `reset()`; [batch][L][H] lists cover the layers named in "layers".

        bytes, peak_bytes, mean_bytes (time average over steps): pages in use; reserved_bytes: with free pages;
        other_bytes: sliding-window layers. slots: kept now. budgets: of the last cut, the even share before it, -1
        without limit. evicted: slots in all. steps: forward passes. routings: cuts. seconds: score, route, evict,
        attend (in C), cut (score, route and evict with everything around them). lost_mass: attention of the newest
        query on what was evicted, mean over cuts of a head. ratio: slots kept / slots of a full cache. wave: where the
        layer wave comes from. closed: why the cache cannot be used, or None.
        """
        seconds, slots = np.zeros(4), self.slots()
        for layer in self.ragged:
            if layer.core is not None:
                seconds += np.array(layer.core.times()) / 1e9
        cutter, pool = self._cutter, self._pool
        full = sum(x.core.tokens(row) * x.heads for x in self.ragged if x.core is not None for row in range(self._rows))
        other = sum(
            t.numel() * t.element_size()
            for x in self.layers
            if not isinstance(x, RaggedLayer)
            for t in (getattr(x, "keys", None), getattr(x, "values", None))
            if t is not None
        )
        return {
            "method": self.config.method,
            "layers": [x.index for x in self.ragged],
            "bytes": pool.bytes if pool else 0,
            "peak_bytes": pool.peak_bytes if pool else 0,
            "mean_bytes": self._byte_sum / self._steps if self._steps else 0.0,
            "reserved_bytes": pool.reserved_bytes if pool else 0,
            "other_bytes": other,
            "slots": slots.tolist(),
            "budgets": cutter.budget_lists() if cutter else [],
            "ratio": float(slots.sum() / full) if full else 1.0,
            "evicted": cutter.evicted if cutter else 0,
            "steps": self._steps,
            "routings": self._routings,
            "seconds": dict(zip(("score", "route", "evict", "attend"), seconds.tolist(), strict=True))
            | {"cut": self._cut_seconds},
            "lost_mass": cutter.lost_mass if cutter else 0.0,
            "wave": cutter.budgets.wave_source if cutter else "none",
            "closed": self._closed,
        }
