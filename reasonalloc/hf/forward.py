"""A cache in a forward pass: each layer in turn stores its tokens, attends to them and is cut where that is due."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import Module
from transformers.cache_utils import Cache, CacheLayerMixin

from reasonalloc.config import Config, check_config
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.architectures import refusal
from reasonalloc.hf.attention import NAME, SERVED, AttentionSpec, activate, expect, take_mask, text_config
from reasonalloc.hf.compat import budgeted_layers, check_not_prefix_tuned, is_full_attention, stock_layers, unwrapped
from reasonalloc.hf.dense import prompt_attention
from reasonalloc.hf.layer import RaggedLayer
from reasonalloc.hf.rope import check_rope, drops_caches, rope_switch
from reasonalloc.hf.states import States, one_dtype
from reasonalloc.hf.step import Part, Step
from reasonalloc.policy.budgets import Budgets
from reasonalloc.policy.core_cut import row_tokens
from reasonalloc.policy.cut import Cutter
from reasonalloc.policy.cut_together import CutTogether
from reasonalloc.policy.gates import ModelShape
from reasonalloc.policy.observers import CutObserver
from reasonalloc.policy.policy import Policy
from reasonalloc.policy.wave import PROBE_QUERIES
from reasonalloc.protocols import Model
from reasonalloc.store.pages import DTYPES, PAGE_TOKENS, PagePool
from reasonalloc.trace import recorder

_LOG = logging.getLogger("reasonalloc")
PROMPT_BYTES = 1 << 28  # of whole prompts that lie in a layer's pages at a time, where they are cut at once
_warned: WeakSet[Model] = WeakSet()  # models whose users know


def _say_measured(model: Model) -> None:
    """Once for a model: a profile would serve every prompt."""
    if model not in _warned:
        _warned.add(model)
        _LOG.info("the layer wave was measured on the prompt; ra.profile measures it once for a model")


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
    kv_heads = heads[managed[0]] if isinstance(heads, list) else heads
    return ModelShape(layers, tuple(managed), kv_heads if isinstance(kv_heads, int) else 0)


class ForwardCache(Cache):
    """What `ReasonAllocCache` is in a forward pass, and what it is made of; arguments as there."""

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
        policy = config.policy() if policy is None else policy
        policy.scorer.check(model, managed)
        policy.heads.check(model, managed)
        policy = policy.fitted(_shape(model, len(stock), managed))
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
        elif self.step.clocks is not None and not self.prompt_goes_on:
            self._finish(self.step.clocks.ended(tokens))
        self.byte_sum += sum(pool.bytes_at_most for pool in self._pools.values())  # as the last pass has left it
        in_prompt = tokens > 1 if columns is None else length < columns
        # Whoever crops a prompt gives the rest of it anew, or drafts what follows it: for one pass it goes on.
        ends_prompt = self.step.cropped if columns is None else length + tokens >= columns
        self.step.begin(rows, tokens, in_prompt, ends_prompt, mask)

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
                if ragged.order == 0:
                    self._cutter.prompt = parts[0].new.counts(self.rows, step.tokens)
                for part in self._by_rows(pool, states[1], parts[0]):
                    ragged.step(pool, states, spec, part.new, prompt=step.prompt)
                    self._store(ragged, states[0], part)
            else:
                rows, heads, tokens, size = states[0].shape
                # What stands between a row's tokens is padding, whose attention is 0.
                make = states[0].new_zeros if parts[0].new.begin is not None else states[0].new_empty
                out = make(rows, tokens, heads, size)  # faster than from a tuple
                for part in parts:
                    ragged.step(pool, states, spec, part.new, out, part.cut_in, step.prompt)
                    if step.prefill and ragged.order == 0:
                        self._cutter.prompt = np.array(row_tokens(ragged))
                    if step.prefill or part.any_due:
                        self._store(ragged, states[0], part)
            ragged.length += step.tokens
            if states[2] is not value and not dense:
                out = out[..., : value.shape[3]].to(query.device)
            if not self._states.heads:
                self._states.hold((query, key, value), states)
            step.leave()
            if ragged is self.ragged[-1]:
                self._end_pass(parts)
            setattr(key, SERVED, layer)
        except BaseException as error:
            step.begun = False
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
            self._end_pass(parts)
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
            if backend.note:
                warnings.warn(f"a cache of keys on {key.device} lies in host memory: {backend.note}", stacklevel=2)
            page_format = self.policy.storage.page_format(key.dtype)
            self._pools[backend.device] = PagePool(page_format, key.shape[3], backend)
        return self._pools[backend.device]

    def _by_rows(self, pool: PagePool, key: torch.Tensor, part: Part) -> list[Part]:
        """The first pass of a layer, some rows at a time where each is cut as soon as it is stored: attention has read
        the dense keys, so pages are needed for what stays only. key: [B, H, T, D]."""
        if not part.any_due or not self._cuts_at_once(part.due):
            return [part]
        row = key.shape[1] * -(-key.shape[2] // PAGE_TOKENS) * pool.core.page_bytes
        return part.by_rows(key.shape[2], max(1, PROMPT_BYTES // row))

    def _cuts_at_once(self, due: npt.NDArray[np.bool_]) -> bool:
        """Whether rows [B] are cut layer by layer, so that a long prompt is whole in one layer at a time. But waves
        that are measured belong together, and so do the scores of a cut in two phases."""
        return not self.policy.two_phases and bool(self.cutter.budgets.measured[due].all())

    def _store(self, layer: RaggedLayer, query: torch.Tensor, part: Part) -> None:
        """A layer has stored a part of a pass: keeps what its wave is measured from, or cuts what is due."""
        if self.step.prefill and not self.cutter.budgets.measured.all():
            layer.keep_probes(query, part.new, PROBE_QUERIES)
        if part.any_due and self._cuts_at_once(part.due):
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

    def _end_pass(self, parts: Sequence[Part]) -> None:
        """The last layer has had its turn."""
        step = self.step
        any_due = any(part.any_due for part in parts)
        if any_due:
            for part in parts:
                self._cut_rows(self.ragged, part.due & (~self.cutter.budgets.measured | self.policy.two_phases))
        evicted = self.cutter.take_flag()
        step.end(evicted)
        self.routings += evicted
        if any_due:
            self._trim()

    @property
    def is_amid_pass(self) -> bool:
        """Whether a forward pass or a cut is under way."""
        return not self.step.is_first_turn or (self._cutter is not None and self._cutter.busy)

    @property
    def prompt_goes_on(self) -> bool:
        """Whether it is known that more of the prompt follows."""
        return self.ragged[0].length < (self.prompt_columns or 0)

    def _settle(self) -> None:
        """The caller looks at the cache: between two passes a prompt that may have gone on is over then."""
        if not self.step.begun and not self.prompt_goes_on:  # amid one an observer or another thread may look
            self._end_prompt()

    def _end_prompt(self) -> None:
        if self.step.clocks is None or not self.step.is_first_turn or self.step.closed:
            return
        self.step.prefill = False
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
