"""ReasonAllocCache: a transformers Cache that stays inside its budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, SupportsIndex

import numpy as np
import torch
from transformers.cache_utils import CacheLayerMixin

from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf import saving
from reasonalloc.hf.compat import stock_layers
from reasonalloc.hf.copying import check_not_amid_pass, independent_copy
from reasonalloc.hf.forward import ForwardCache
from reasonalloc.hf.layer import RaggedLayer
from reasonalloc.hf.stats import CacheStats, Seconds
from reasonalloc.policy.observers import CutObserver
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.store.pages import PAGE_TOKENS
from reasonalloc.trace import Trace, recorder


class _Unchanged(ValueError):
    """A request was refused, and no layer has changed."""


class ReasonAllocCache(ForwardCache):
    """A cache for `model.generate(past_key_values=...)` (`cache=...` from transformers 5.24 on), or any forward pass.

    Layers with full attention keep ragged heads inside the budget of `config`; layers with a sliding window keep
    transformers' own cache. Making one switches the model to the library's attention (`ra.uninstall(model)` undoes it).

    Rows of a batch never see each other or padding: a row gives what it gives alone. After an error inside a forward
    pass the cache is closed: each further use says so until `reset()`. An error that is found before anything changed
    leaves it usable.

    The cache and its attention are where the model lies, on the CPU or a CUDA device. Where there is no backend for it
    (`stats()["backends"]`), and with ``Config(device="cpu")``, they are in host memory: a layer on an accelerator then
    sends its new queries, keys and values over and gets its attention back.

    record: keep every cut for `trace`. The same tokens stay; a cut takes longer.
    observers: functions of a `CutView`, called for each row of each layer that is cut.
    policy: parts put together by hand, in place of those that `config` names.

    prompt_columns: how many columns the prompt has, where that is known, as in a session; 0: as many as the first pass.
    Then it is over at its end; otherwise a pass later, for passes of several tokens may all belong to it, and its last
    chunk counts as decoding if it is a single token. Where the wave is measured on the prompt, or cuts have two phases,
    it is cut only when it is over. A look at the cache (`stats`, `positions`) ends a prompt of a
    length that is not known; `save` ends any.

    Raises ValueError for a model without full-attention layers, a profile of another model or a budget that does not
    fit; TypeError for dtypes other than float32, bfloat16, float16.
    """

    # ---- rows and lengths ----

    def reset(self) -> None:
        """Empties the cache and opens it again; all pages go home."""
        for layer in self.ragged:
            layer.reset()
        # Fresh ones for the rest: up to transformers 5.10 a reset layer keeps its shape and attends to zeros.
        stock = stock_layers(self.model)
        self.layers: list[CacheLayerMixin] = [
            x if isinstance(x, RaggedLayer) else stock[i] for i, x in enumerate(self.layers)
        ]
        self._clear()

    @contextmanager
    def _all_or_closed(self) -> Iterator[None]:
        """Layers are changed one by one: the cache is closed if one of them fails."""
        self.step.check_between()
        try:
            yield
        except _Unchanged:
            raise
        except BaseException as error:
            self.step.close(error)
            raise

    def _move_rows(self, source: torch.Tensor) -> None:
        """Row i becomes row source[i]."""
        self.step.check_between()
        if not self.ragged[0].length:
            return
        source = source.detach().cpu().reshape(-1).long()
        rows = np.ascontiguousarray(source.numpy())
        if not len(rows) or rows.min() < 0 or rows.max() >= self.rows:
            raise ValueError(f"row numbers must lie in 0..{self.rows - 1}, got {rows.tolist()}")
        budgets = self.cutter.budgets
        tighter = budgets.fitting(len(rows)) != budgets.fitting(self.rows)  # raises if max_bytes has no room for them
        with self._all_or_closed():
            self.cutter.fetch()
            for layer in self.layers:
                if isinstance(layer, RaggedLayer):
                    layer.core.reorder(rows)
                else:  # the one method for rows that all of transformers' layers have
                    layer.reorder_cache(source)
            self.cutter.move_rows(rows)
            self.step.move_rows(rows)
            for layer in self.ragged:
                layer.move_probes(rows)
            self.rows = len(rows)
            if tighter:  # at once: shared pages become each row's own as the rows go on
                self._finish(np.ones(len(rows), np.bool_))
            self._trim()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes row beam_idx[i]; pages are shared and copied on write."""
        self._move_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one after the other, sharing pages."""
        self._move_rows(torch.arange(self.rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows named."""
        self._move_rows(torch.arange(self.rows)[indices.cpu()])

    def crop(self, tokens: int) -> None:
        """Forgets the newest -tokens tokens (tokens < 0), or all but the first `tokens` (tokens > 0).

        Possible as far back as the last cut that evicted something, for what went then does not come back, and as the
        last padding of a row. Raises ValueError, with nothing changed, where it is not. A prompt whose length is not
        known ends with the pass after a crop.
        """
        self.step.check_between()
        length = self.ragged[0].length
        remove = -tokens if tokens <= 0 else max(0, length - tokens)
        uncut, whole = self.step.uncut, self.step.columns.whole
        if remove > uncut:
            raise ValueError(
                f"cannot crop {remove} of {length} tokens: only the newest {uncut} came after the last eviction, and"
                " what was evicted does not come back"
            )
        if remove > whole:
            raise ValueError(
                f"cannot crop {remove} of {length} columns: only the newest {whole} are tokens in every row, and what"
                " is padding in one cannot be taken back"
            )
        row_tokens = np.array([self.ragged[0].core.tokens(row) for row in range(self.rows if remove else 0)], np.int64)
        with self._all_or_closed():
            self._crop_others(remove)
            for layer in self.ragged if remove else ():
                layer.core.crop(remove)
                layer.crop_probes(remove)
                layer.length -= remove
            if remove:
                self.step.crop(remove)
                self.cutter.forget_beyond(row_tokens - remove)

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
        return others and (min(self.step.uncut, self.step.columns.whole) > 0 or not self.ragged[0].length)

    # ---- copies and files ----

    def save(self, path: str | Path) -> None:
        """Writes the cache as safetensors, whole or not at all: what `load` needs to go on as this one would.

        A prompt that may have gone on is over then, and cut. Takes as much memory again as the cache, for the time.

        Raises ValueError for a policy put together by hand, options that JSON cannot hold and layers of transformers
        whose state is not known; RuntimeError amid a forward pass and for a closed cache.
        """
        self.step.check_open()
        check_not_amid_pass(self, "saved")
        self._end_prompt()
        saving.save(self, path)

    @classmethod
    def load(cls, path: str | Path, model: Model, *, observers: Sequence[CutObserver] = ()) -> ReasonAllocCache:
        """Reads a saved cache for the model that it was saved with.

        Keys, values, positions and queries are those that were saved, to the bit. What is computed from them for scores
        is computed anew, in another order perhaps: scores differ by rounding at most. The seconds of `stats()` begin
        anew. observers: as of the class. Raises ValueError for a file that is none, is damaged, of another schema or of
        another model (its shape, weights or dtype), and for a method that is not registered here.
        """
        return saving.load(cls, path, model, observers)

    def __deepcopy__(self, memo: dict[int, object]) -> ReasonAllocCache:
        """A cache that goes on by itself, as this one would; it shares the model, the observers and, until one of the
        two writes to them, the pages. Raises RuntimeError amid a forward pass."""
        return independent_copy(self, memo)

    def __copy__(self) -> ReasonAllocCache:
        return independent_copy(self, {})  # two caches over the same lists could not go on

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "a ReasonAllocCache cannot be pickled: cache.save(path) writes it and ReasonAllocCache.load(path, model)"
            " reads it again"
        )

    # ---- figures ----

    def positions(self, layer: int, row: int = 0) -> list[np.ndarray]:
        """Positions that each KV head of a layer still holds, ascending; 0 is the row's first real token."""
        self._settle()
        ragged = {x.index: x for x in self.ragged}.get(layer)
        if ragged is None:
            raise ValueError(f"layer {layer} has no budget; those that have are {[x.index for x in self.ragged]}")
        if ragged.is_empty:
            return []
        return [np.frombuffer(ragged.core.positions(row, h), np.int32) for h in range(ragged.heads)]

    def slots(self) -> np.ndarray:
        """[batch, L, H] slots that each KV head of the layers with a budget keeps now, int64."""
        self._settle()
        slots = np.zeros((self.rows, len(self.ragged), max((x.heads for x in self.ragged), default=0)), dtype=np.int64)
        for layer in self.ragged:
            if not layer.is_empty:
                own = np.zeros((self.rows, layer.heads), dtype=np.int64)
                layer.core.slots(own)
                slots[:, layer.order] = own
        return slots

    def cold_slots(self) -> np.ndarray:
        """[batch, L, H] evicted tokens of each KV head that can come back, int64; empty without recall."""
        self._settle()
        if self.policy.cold is None:
            return np.zeros((0, 0, 0), np.int64)
        slots = np.zeros((self.rows, len(self.ragged), max((x.heads for x in self.ragged), default=0)), dtype=np.int64)
        for layer in self.ragged:
            if not layer.is_empty:
                own = np.zeros((self.rows, layer.heads), dtype=np.int64)
                layer.core.cold_slots(own)
                slots[:, layer.order] = own
        return slots

    def page_bytes_by_row(self) -> np.ndarray:
        """[batch] bytes of the pages that each row uses now; a page that rows share counts for each of them."""
        if not self._pools:
            return np.zeros(self.rows, dtype=np.int64)
        pages = -(-self.slots() // PAGE_TOKENS)
        return np.asarray(pages.sum((1, 2)) * self.pool.core.page_bytes)

    def trace(self, ids: recorder.Ids, tokenizer: Tokenizer | None = None, row: int = 0, model_id: str = "") -> Trace:
        """Every cut of a row so far, if the cache was made with record=True.

        ids: [n] the row's token ids (tensor, array or list) without padding; a last one that the cache was not given,
        as after `generate`, is left out. tokenizer: for the tokens' text. model_id: what the trace calls the model;
        by default transformers' name of it. Raises ValueError for ids of another length and RuntimeError for a cache
        that does not record, is empty or is closed.
        """
        self.step.check_between()
        cutter = self.cutter
        if self.recorder is None:
            raise RuntimeError("the cache does not record: make it with ReasonAllocCache(model, config, record=True)")
        if not 0 <= row < self.rows:
            raise ValueError(f"row numbers must lie in 0..{self.rows - 1}, got {row}")
        of = recorder.Recorded(
            layers=tuple(x.index for x in self.ragged),
            heads=self.ragged[0].heads,
            tokens=self.ragged[0].core.tokens(row),
            prompt=int(cutter.prompt[row]),
            config=self.config,
            policy=self.policy,
            model=fingerprint(self.model),
            model_id=model_id or getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__,
        )
        return recorder.trace(self.recorder.cuts[row], ids, tokenizer, of)

    def stats(self) -> CacheStats:
        """Figures since creation or `reset()`; `[batch][L][H]` lists cover the layers named in "layers".

        bytes, peak_bytes, mean_bytes (time average over steps): pages in use; reserved_bytes: with free pages;
        other_bytes: sliding-window layers. slots: kept now. budgets: of the last cut, the even share before it, -1
        without limit. evicted: slots in all; recalls: how many of them came back; cold_slots: those that still can, []
        without recall, and cold_bytes what they take in host memory, which is in none of the other bytes. A cut that
        scores them has them in pages too: that is in peak_bytes. steps: forward passes. routings: cuts. seconds: score,
        route, evict, attend (in C), cut (score, route and evict with everything around them). lost_mass: attention of
        the newest query (with recall, over the cold tokens too) on what did not stay, mean over cuts of a head. ratio:
        slots kept / slots of a full cache. wave: where the layer wave comes from. closed: why the cache cannot be used,
        or None.
        """
        nanoseconds, slots = np.zeros(4), self.slots()
        if self._cutter is not None:
            self._cutter.fetch()
        for layer in self.ragged:
            if not layer.is_empty:
                nanoseconds += layer.core.times()
        seconds = (nanoseconds / 1e9).tolist()
        cutter, pools = self._cutter, self._pools.values()
        used = sum(pool.bytes for pool in pools)
        full = sum(x.core.tokens(row) * x.heads for x in self.ragged if not x.is_empty for row in range(self.rows))
        other = sum(
            t.numel() * t.element_size()
            for x in self.layers
            if not isinstance(x, RaggedLayer)
            for t in (getattr(x, "keys", None), getattr(x, "values", None))
            if t is not None
        )
        figures = {
            "method": self.config.method,
            "layers": [x.index for x in self.ragged],
            "bytes": used,
            "peak_bytes": sum(pool.peak_bytes for pool in pools),
            "mean_bytes": (self.byte_sum + used) / self.step.count if pools and self.step.count else 0.0,
            "reserved_bytes": sum(pool.reserved_bytes for pool in pools),
            "backends": sorted({str(pool.backend) for pool in pools}),
            "other_bytes": other,
            "slots": slots.tolist(),
            "budgets": cutter.budget_lists() if cutter else [],
            "ratio": float(slots.sum() / full) if full else 1.0,
            "evicted": cutter.evicted if cutter else 0,
            "recalls": cutter.recalls if cutter else 0,
            "cold_bytes": sum(pool.cold_bytes for pool in pools),
            "cold_slots": self.cold_slots().tolist(),
            "steps": self.step.count,
            "routings": self.routings,
            "seconds": Seconds(
                score=seconds[0], route=seconds[1], evict=seconds[2], attend=seconds[3], cut=self._cut_seconds
            ),
            "lost_mass": cutter.lost_mass if cutter else 0.0,
            "wave": cutter.budgets.wave_source if cutter else "none",
            "closed": self.step.closed,
        }
        return CacheStats(figures)
