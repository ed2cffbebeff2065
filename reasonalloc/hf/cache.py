"""ReasonAllocCache: a transformers Cache that stays inside its budget."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, SupportsIndex
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import Module
from transformers.cache_utils import Cache, CacheLayerMixin

from reasonalloc.config import Config, check_config
from reasonalloc.hf import saving
from reasonalloc.hf.architectures import refusal
from reasonalloc.hf.attention import NAME, SERVED, AttentionSpec, activate, expect, take_mask, text_config
from reasonalloc.hf.compat import budgeted_layers, check_not_prefix_tuned, is_full_attention, stock_layers, unwrapped
from reasonalloc.hf.copying import check_not_amid_pass, independent_copy
from reasonalloc.hf.dense import prompt_attention
from reasonalloc.hf.layer import RaggedLayer
from reasonalloc.hf.rope import check_rope, drops_caches, rope_switch
from reasonalloc.hf.states import States, one_dtype
from reasonalloc.hf.stats import CacheStats, Seconds
from reasonalloc.hf.step import Part, Step
from reasonalloc.policy.budgets import Budgets
from reasonalloc.policy.cut import Cutter
from reasonalloc.policy.cut_together import CutTogether
from reasonalloc.policy.gates import ModelShape
from reasonalloc.policy.observers import CutObserver
from reasonalloc.policy.policy import Policy
from reasonalloc.policy.wave import PROBE_QUERIES, fingerprint
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.store.pages import DTYPES, PAGE_TOKENS, PagePool
from reasonalloc.trace import Trace, recorder

_LOG = logging.getLogger("reasonalloc")
_said: WeakSet[Model] = WeakSet()  # models whose users know


def _say_measured(model: Model) -> None:
    """Once for a model: a profile would serve every prompt."""
    if model not in _said:
        _said.add(model)
        _LOG.info("the layer wave was measured on the prompt; ra.profile measures it once for a model")


class _Unchanged(ValueError):
    """A request was refused, and no layer has changed."""


def _why_nothing(stock: Sequence[CacheLayerMixin]) -> str:
    """Why no layer of a model can have a budget."""
    kinds = ", ".join(sorted({type(layer).__name__ for layer in stock}))
    if any(map(is_full_attention, stock)):
        return "other layers read the keys of each layer with full attention, so there is nothing to give a budget to"
    hint = ""
    if any(getattr(layer, "is_sliding", False) for layer in stock):
        hint = " (where chains stay shorter than the window, set model.config.sliding_window = None)"
    return f"no layer has full attention alone, so there is nothing to give a budget to: its caches are {kinds}{hint}"


def _shape(model: Model, layers: int, managed: Sequence[int]) -> ModelShape:
    heads = fingerprint(model)["kv_heads"]
    own = heads[managed[0]] if isinstance(heads, list) else heads
    return ModelShape(layers, tuple(managed), own if isinstance(own, int) else 0)


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
    observers: functions of a `CutView`, called for each row of each layer that is cut.
    policy: parts put together by hand, in place of those that `config` names.

    prompt_columns: how many columns the prompt has, where that is known, as in a session; 0: as many as the first pass.
    Then it is cut at its end; otherwise a pass later, for passes of several tokens may all belong to it, and its last
    chunk counts as decoding if it is a single token.

    Raises ValueError for a model without full-attention layers, a profile of another model or a budget that does not
    fit; TypeError for dtypes other than float32, bfloat16, float16.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        *,
        record: bool = False,
        observers: Sequence[CutObserver] = (),
        policy: Policy | None = None,
    ) -> None:
        check_config(config)
        check_not_prefix_tuned(model)
        model = unwrapped(model)
        if reason := refusal(model):
            raise ValueError(f"{type(model).__name__} is not supported: {reason}")
        stock, managed = stock_layers(model), budgeted_layers(model)
        if not managed:
            raise ValueError(f"{type(model).__name__}: {_why_nothing(stock)}")
        if config.profile is not None:
            config.profile.check(model, managed)
        if model.dtype not in DTYPES:
            raise TypeError(f"the cache holds float32, bfloat16 and float16, the model is {model.dtype}")
        # One mask serves all layers with full attention, also those that keep every token for others.
        whole_masks = len(managed) < sum(map(is_full_attention, stock))
        own_policy = policy is not None
        policy = (config.policy() if policy is None else policy).fitted(_shape(model, len(stock), managed))
        policy.scorer.check(model, managed)
        if record and policy.cold is not None:
            raise ValueError(
                "a trace says of each token when it goes, and with recall tokens come back: record=False (observers see"
                " every cut), or recall=False"
            )
        window, scorer, statistics = policy.schedule.window, policy.core_scorer, policy.statistics
        layers = list(stock)
        for order, i in enumerate(managed):
            layers[i] = RaggedLayer(i, order, window, scorer, policy.ahead, whole_masks, statistics, policy.cold)
        super().__init__(layers=layers)
        self.model, self.config, self.policy, self.record = model, config, policy, record
        self.ragged: list[RaggedLayer] = [x for x in layers if isinstance(x, RaggedLayer)]
        for layer in self.ragged:
            layer.prepare = policy.prepare
        self.observers = tuple(observers)
        self.by_hand = own_policy
        self._whole_masks = whole_masks
        self._drops_caches, self._rope_switch = drops_caches(model), rope_switch(model)
        self._states = States(model, config.device if policy.cold is None else "cpu", policy.core_scorer)
        self.prompt_columns: int | None = None
        activate(model)
        self._text_config = text_config(model)
        self._clear()

    def __bool__(self) -> bool:
        """False where a model's generate() would drop a true cache in mid-text, and with it the budget."""
        return not self._drops_caches

    def _clear(self) -> None:
        turns = [i for i, layer in enumerate(self.layers) if isinstance(layer, CacheLayerMixin)]
        gathers = self.policy.statistics is not None
        self.step = Step(turns, self.policy.window_attention, self._whole_masks, gathers)
        self._pools: dict[torch.device, PagePool] = {}
        self.rows = 0
        self.routings = self.byte_sum = 0
        self._states.clear()
        self._cutter: Cutter | None = None
        self.recorder: recorder.Recorder | None = None
        self._cut_seconds = 0.0
        self.capturing = False  # a pass is captured (`hf.graph`): memory stays where it is

    # ---- a forward pass: `update`, then `attend` for each layer in turn; for ours the latter ends with `leave` ----

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """transformers gives a layer its new keys and values."""
        if layer_idx >= len(self.layers):
            raise ValueError(
                f"the cache was made for a {type(self.model).__name__} of {len(self.layers)} layers and is used by"
                f" another model, which has a layer {layer_idx}"
            )
        if key_states.is_meta:
            raise ValueError("keys are on the device meta, which holds no data: load the model's weights first")
        step = self.step
        if step.closed or not step.is_turn_of(layer_idx):
            step.refuse_turn(self._why_out_of_turn)
        if step.is_first_turn:
            self._begin_step(key_states.shape[0], key_states.shape[2])
        layer = self.layers[layer_idx]
        if isinstance(layer, RaggedLayer):
            expect(self, layer_idx, key_states)
            return key_states, value_states
        result = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.step.leave()
        return result

    @property
    def _why_out_of_turn(self) -> str:
        if not self.model.config.is_encoder_decoder:
            return ""
        return ", or its cross-attention uses this cache too: give it EncoderDecoderCache(this one, DynamicCache())"

    def _begin_step(self, rows: int, tokens: int) -> None:
        if self._text_config._attn_implementation != NAME:
            raise RuntimeError(
                "the model no longer uses reasonalloc's attention (uninstalled?), so this cache cannot serve it"
            )
        length, columns = self.ragged[0].length, self.prompt_columns
        if length and rows != self.rows:
            raise ValueError(f"the cache holds {self.rows} rows, now is given a batch of {rows}; reset() it first")
        mask = take_mask()
        if self._rope_switch is not None:
            check_rope(self._rope_switch, length, tokens)
        if not length:
            self.rows = rows
            self._cutter = None
            self._states.clear()
            for layer in self.ragged:
                layer.drop()  # left over where a first step failed
            if not self.policy.unlimited:
                self.step.clocks = self.policy.schedule.clocks(rows, self.whole_prompts)
        elif self.step.clocks is not None and not (columns and length < columns):
            self._finish(self.step.clocks.ended(tokens))
        self.byte_sum += sum(pool.bytes_at_most for pool in self._pools.values())  # as the last pass has left it
        in_prompt = tokens > 1 if columns is None else length < columns
        self.step.begin(rows, tokens, in_prompt, columns is not None and length + tokens >= columns, mask)

    @property
    def measures_wave(self) -> bool:
        """Whether rows take their wave from their prompt."""
        return self.policy.needs_wave and self.config.profile is None

    @property
    def whole_prompts(self) -> bool:
        """Whether rows are cut only once their prompt has ended: amid a pass no two layers can be cut together."""
        return self.measures_wave or self.policy.two_phases

    def attend(
        self,
        layer: int,
        module: Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Stores a layer's new tokens and returns their attention, [B, T, Hq, Dv]; cuts what is due."""
        ragged, step = self.layers[layer], self.step
        first, before = step.is_first_turn, ragged.token_count() if step.is_first_turn else 0
        try:
            spec = AttentionSpec.of(module, query, scaling, options)
            dense = ragged.length == 0 and step.tokens > 1
            states = self._states.prepare(layer, module, query, key, value)
            if self._cutter is None:
                self._cutter = self._make_cutter(states[1])
            parts = step.parts(None if self.capturing else attention_mask, dense)  # amid a capture it has no values
            pool = self.pool_of(states[1]) if ragged.is_empty else ragged.pool
            if dense:
                out = prompt_attention(module, *one_dtype(query, key, value), attention_mask, spec, options)
                ragged.step(pool, states, spec, parts[0].new, prompt=step.prompt)
            else:
                rows, heads, tokens, size = states[0].shape
                # What stands between a row's tokens is padding, whose attention is 0.
                make = states[0].new_zeros if parts[0].new.begin is not None else states[0].new_empty
                out = make(rows, tokens, heads, size)  # faster than from a tuple
            for part in parts:
                if not dense:
                    ragged.step(pool, states, spec, part.new, out, part.cut_in, step.prompt)
                if step.prefill or part.any_due:
                    self._store(ragged, states[0], part)
            ragged.length += step.tokens
            if states[2] is not value and not dense:
                out = out[..., : value.shape[3]].to(query.device)
            if not self._states.heads:
                self._states.hold((query, key, value), states)
            step.leave()
            if ragged is self.ragged[-1]:
                self._end_pass(parts, dense)
            setattr(key, SERVED, layer)
        except BaseException as error:
            if not first or ragged.token_count() != before:  # something has changed
                step.close(error)
            raise
        return out

    def count_replay(self) -> None:
        """A pass of one token a row was replayed (`hf.graph`): all is counted that `attend` counts."""
        step = self.step
        step.check_between()
        self._begin_step(self.rows, 1)
        (part,) = parts = step.parts(None, False)
        try:
            with self.cutter.counting():
                for ragged in self.ragged:
                    ragged.core.replayed(1)
                    if part.any_due:
                        self._cut_rows([ragged], part.due)
                    ragged.length += 1
                    step.leave()
            self._end_pass(parts, False)
        except BaseException as error:
            step.close(error)
            raise

    def _make_cutter(self, key: torch.Tensor) -> Cutter:
        """Raises ValueError if the budget does not fit this batch."""
        page_bytes = self.policy.storage.page_bytes(key.dtype, key.shape[3])
        profile, size = self.config.profile, self.config.size()
        budgets = Budgets(size, self.policy, profile, len(self.ragged), key.shape[1], page_bytes)
        budgets.start(self.rows)
        self.recorder = recorder.Recorder(self.rows) if self.record else None
        own = [] if self.recorder is None else [self.recorder]
        cutter = CutTogether if self.policy.two_phases else Cutter
        return cutter(self.policy, budgets, [*own, *self.observers])

    def make_room(self, like: torch.Tensor) -> None:
        """Budgets for rows like [B, H, n, D], as a first step makes them, for what a file holds.

        ValueError if the budget does not fit.
        """
        self.rows = len(like)
        self._cutter = self._make_cutter(like)

    def pool_of(self, key: torch.Tensor) -> PagePool:
        """The pool for a layer whose keys are like these, of the device where they lie."""
        backend = self._states.backend(key)
        if backend.device not in self._pools:
            page_format = self.policy.storage.page_format(key.dtype)
            self._pools[backend.device] = PagePool(page_format, key.shape[3], backend)
        return self._pools[backend.device]

    def _store(self, layer: RaggedLayer, query: torch.Tensor, part: Part) -> None:
        """A layer has stored a part of a pass: keeps what its wave is measured from, or cuts what is due."""
        budgets = self.cutter.budgets
        if self.step.prefill and layer.order == 0:
            self.cutter.prompt = np.array([layer.core.tokens(row) for row in range(self.rows)])
        if self.step.prefill and not budgets.measured.all():
            layer.keep_probes(query, part.new, PROBE_QUERIES)
        # At once, so that a long prompt is whole in one layer at a time; but waves that are measured belong together,
        # and so do the scores of a cut in two phases.
        if part.any_due and not self.policy.two_phases and budgets.measured[part.due].all():
            self._cut_rows([layer], part.due)

    def _cut_rows(self, layers: Sequence[RaggedLayer], due: npt.NDArray[np.bool_]) -> None:
        """Cuts rows [B] of these layers, after their waves are measured where that is to be done."""
        if not due.any():
            return
        start = time.perf_counter()
        budgets = self.cutter.budgets
        for row in (due & ~budgets.measured).nonzero()[0]:
            demand = [layer.demand(int(row), self.policy.layers) for layer in self.ragged]
            budgets.set_wave(int(row), demand)
            _say_measured(self.model)
        self.cutter.cut(layers, due)
        self._cut_seconds += time.perf_counter() - start

    def _end_pass(self, parts: Sequence[Part], dense: bool) -> None:
        """The last layer has had its turn."""
        step = self.step
        any_due = any(part.any_due for part in parts)
        if any_due:
            for part in parts:
                self._cut_rows(self.ragged, part.due & (~self.cutter.budgets.measured | self.policy.two_phases))
        evicted = self.cutter.take_flag()
        step.end(evicted, padded=parts[0].new.real is not None and not dense)
        self.routings += evicted
        if any_due:
            self._trim()

    @property
    def is_amid_pass(self) -> bool:
        """Whether a forward pass or a cut is under way."""
        return not self.step.is_first_turn or (self._cutter is not None and self._cutter.busy)

    def _settle(self) -> None:
        """The caller looks at the cache between two passes: a prompt that may have gone on is over."""
        if self.step.clocks is None or not self.step.is_first_turn or self.step.closed:
            return
        self._finish(self.step.clocks.settle())

    def _finish(self, due: npt.NDArray[np.bool_] | None) -> None:
        """Cuts rows [B] whose prompt has turned out to be over, between two passes; None: no row."""
        if due is None or not due.any():
            return
        self._cut_rows(self.ragged, due)
        if self.cutter.take_flag():
            self.step.uncut = 0
            self.routings += 1
        self._trim()

    def _trim(self) -> None:
        """Gives back the memory that was freed, but for what the heads need until their next cut."""
        if self.capturing:
            return
        ahead = 1 if self.policy.unlimited else self.policy.schedule.interval // PAGE_TOKENS + 1
        for pool in self._pools.values():
            heads = self.rows * sum(x.heads for x in self.ragged if not x.is_empty and x.pool is pool)
            pool.trim(keep_free=heads * ahead)

    @property
    def cutter(self) -> Cutter:
        if self._cutter is None:
            raise RuntimeError("the cache is empty")
        return self._cutter

    @property
    def pool(self) -> PagePool:
        """Of the first layer with a budget."""
        if not self._pools:
            raise RuntimeError("the cache is empty")
        return next(iter(self._pools.values()))

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

        Possible as far back as the last cut that evicted something: what went then does not come back. Raises
        ValueError, with nothing changed, where it is not.
        """
        self.step.check_between()
        length = self.ragged[0].length
        remove = -tokens if tokens <= 0 else max(0, length - tokens)
        if remove > self.step.uncut:
            raise ValueError(
                f"cannot crop {remove} of {length} tokens: only the newest {self.step.uncut} came after the last"
                " eviction, and what was evicted does not come back"
            )
        shortest = 0
        if remove:
            shortest = min(self.ragged[0].core.tokens(row) for row in range(self.rows))
            if remove > shortest:
                raise ValueError(f"cannot crop {remove} tokens: a row has only {shortest} that are not padding")
        with self._all_or_closed():
            self._crop_others(remove)
            for layer in self.ragged if remove else ():
                layer.core.crop(remove)
                layer.length -= remove
            if remove:
                self.step.crop(remove)
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
        return others and (self.step.uncut > 0 or not self.ragged[0].length)

    # ---- copies and files ----

    def save(self, path: str | Path) -> None:
        """Writes the cache as safetensors, whole or not at all: what `load` needs to go on as this one would.

        A prompt that may have gone on is over then, and cut. Takes as much memory again as the cache, for the time.

        Raises ValueError for a policy put together by hand, options that JSON cannot hold and layers of transformers
        whose state is not known; RuntimeError amid a forward pass and for a closed cache.
        """
        self.step.check_open()
        check_not_amid_pass(self, "saved")
        self._settle()
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
