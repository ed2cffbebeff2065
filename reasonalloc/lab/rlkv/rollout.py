"""Rows whose keys and values have their places beforehand, so that a GPU decodes a step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.capture import Graphs
from reasonalloc.hf.compat import budgeted_layers, cache_argument, stock_layers, unwrapped
from reasonalloc.hf.decode import DecodeBatch
from reasonalloc.lab.rlkv.mixed import NAME, Mixture, gate_shape, mixing
from reasonalloc.protocols import Model

_BLOCK = 256  # a step attends to a multiple of so many columns; each multiple has its graph
_FEW = 16  # a GPU takes as long for fewer rows: those that have ended stay
_ALIGNED = 64  # masks of odd widths are copied by torch in every layer


class _Place:
    """Where the next token of all rows goes, for all layers. most: columns in all; width: those that are attended to.

    column: on the device, where a graph moves it on.
    """

    def __init__(self, prompt: int, most: int, device: torch.device) -> None:
        self.most = self.width = most
        self.seen = 0
        self.column = torch.tensor([prompt], device=device)

    def move(self, tokens: int) -> None:
        """The host's count, and the width that the next token needs."""
        self.seen += tokens
        self.width = min(-(-(self.seen + 1) // _BLOCK) * _BLOCK, self.most)


class _FixedLayer(DynamicLayer):
    """Unlike transformers' StaticLayer it gives the prompt's pass the prompt alone, in all versions asks the device for
    nothing, and does not attend to columns long before they are filled."""

    is_initialized: bool

    def __init__(self, place: _Place) -> None:
        super().__init__()
        self.place = place

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        place = self.place
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = (
                x.new_zeros(*x.shape[:2], place.most, x.shape[3]) for x in (key_states, value_states)
            )
            for kept, x in ((self.keys, key_states), (self.values, value_states)):
                kept[:, :, : x.shape[2]] = x
            self.is_initialized = True
            return key_states, value_states
        self.keys.index_copy_(2, place.column, key_states)
        self.values.index_copy_(2, place.column, value_states)
        return self.keys[:, :, : place.width], self.values[:, :, : place.width]

    def get_seq_length(self) -> int:
        return self.place.seen


class FixedBatch(DecodeBatch):
    """As `DecodeBatch` with a cache of its own; no pass after the prompt's has the host look at the device.

    most: tokens that follow a prompt. graphs: replay steps; else they run one by one. The first step of a kind (number
    of rows, columns) is an ordinary one, the second is captured.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int] | torch.Tensor],
        most: int,
        pad: int = 0,
        graphs: bool = False,
    ) -> None:
        columns = max(len(x) for x in prompts)
        self.place = _Place(columns, -(-(columns + most) // _ALIGNED) * _ALIGNED, model.device)
        super().__init__(model, Cache(layers=[_FixedLayer(self.place) for _ in stock_layers(model)]), prompts, pad)
        self.replaying = graphs
        self.captures = self.replays = 0
        self._columns = torch.arange(self.place.most, device=model.device)
        self._graphs: Graphs[int, torch.Tensor] = Graphs(model.device)  # by width
        self._warm: set[tuple[int, int]] = set()  # (rows, width)

    def forward(self) -> torch.Tensor:
        if not self.place.seen:
            logits = super().forward()
            self.place.move(self.tokens.shape[1])
            # From here on of fixed places: the token of each row, its position, and what the row may attend to.
            self.positions = self.positions[:, -1:] + 1
            rest = self.mask.new_ones(len(self.mask), self.place.most - self.place.seen)
            self.mask = torch.cat([self.mask, rest], 1).bool()
            self.tokens = torch.zeros_like(self.positions)
            return logits
        logits = self._pass()
        self.place.move(1)
        return logits

    def _pass(self) -> torch.Tensor:
        width = self.place.width
        kind = (len(self.tokens), width)
        if not self.replaying or kind not in self._warm:
            self._warm.add(kind)
            return self._step()
        if width not in self._graphs:
            self._graphs.capture(width, self._step)
            self.captures += 1
        graph, logits = self._graphs[width]
        graph.replay()
        self.replays += 1
        return logits

    def _step(self) -> torch.Tensor:
        """A token of each row; all that changes from step to step is moved on in place."""
        width = self.place.width
        # A new tensor in each pass: mixed attention looks at a mask once, and must do so in each graph.
        mask = self.mask[:, :width] & (self._columns[:width] <= self.place.column)
        with torch.no_grad():
            logits: torch.Tensor = self.model(
                input_ids=self.tokens, attention_mask=mask[:, None, None], position_ids=self.positions,
                **cache_argument(self.cache), use_cache=True,
            ).logits[:, -1]  # fmt: skip
        self.positions.add_(1)
        self.place.column.add_(1)
        return logits

    def append(self, tokens: torch.Tensor) -> None:
        self.tokens.copy_(tokens[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        self._graphs.clear()  # they read the former tensors
        super().keep(rows)

    def outgrown(self, running: int) -> bool:
        rows = len(self.tokens)
        return not running or (rows > _FEW and 2 * running <= rows)


def why_not(model: Model) -> str:
    """Why a model's rows cannot have fixed places; empty if they can."""
    inner = unwrapped(model)
    if len(budgeted_layers(inner)) < len(stock_layers(inner)):
        return "not all of its layers have full attention and keys of their own"
    if inner.config._attn_implementation not in ("sdpa", NAME):
        return f"its attention is {inner.config._attn_implementation}, which may not take a mask that is ready-made"
    if any(getattr(x, "rope_type", None) in ("dynamic", "longrope") for x in inner.modules()):
        return "its rotary embedding looks at the length on the host"
    if len({x.device for x in inner.parameters()}) > 1:
        return "it lies on several devices"
    return ""


def rows_at_once(model: Model, tokens: int, few: int, many: int) -> int:
    """How many rows of so many tokens to decode together: `few` on a CPU; on a GPU up to `many`, as long as their keys
    and values take half of what is free."""
    if model.device.type != "cuda":
        return few
    layers, heads = gate_shape(model)
    size = np.max(fingerprint(model)["head_dim"])  # a number, or one a layer
    free = torch.cuda.mem_get_info(model.device)[0]
    return max(few, min(many, int(free // (4 * layers * heads * size * model.dtype.itemsize * tokens))))


def _fixed(model: Model) -> bool:
    return model.device.type == "cuda" and not why_not(model)


def attending_in_full(model: Model) -> AbstractContextManager[None]:
    """For `batch_of` without gates: mixed attention with all of them open where it is quicker than the model's own."""
    if _fixed(model):
        return mixing(model, Mixture(torch.ones(gate_shape(model), device=model.device), 0, 1, packed=True))
    return nullcontext()


def batch_of(model: Model, prompts: Sequence[Sequence[int] | torch.Tensor], most: int, pad: int = 0) -> DecodeBatch:
    """Rows that decode as CUDA graphs where the model lies on one GPU and can; with transformers' cache elsewhere."""
    if _fixed(model):
        return FixedBatch(model, prompts, most, pad, graphs=True)
    return DecodeBatch(model, DynamicCache(config=model.config), prompts, pad)
