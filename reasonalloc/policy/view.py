"""What parts are shown of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from reasonalloc import _core

if TYPE_CHECKING:
    import torch

Numbers: TypeAlias = "torch.Tensor | npt.NDArray[np.number] | Sequence[float]"  # as Python code may return them


class Settings(Protocol):
    """The keywords of `reasonalloc.Config` that methods written in Python may read."""

    @property
    def method(self) -> str: ...
    @property
    def window(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def kernel(self) -> int: ...
    @property
    def gamma(self) -> float: ...
    @property
    def lo(self) -> float: ...
    @property
    def hi(self) -> float: ...
    @property
    def mu(self) -> float: ...
    @property
    def safeguard(self) -> float: ...
    @property
    def rho(self) -> float: ...
    @property
    def beta(self) -> float: ...
    @property
    def smoothing(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class RowView:
    """A row when its layers' totals are set. tokens: that it has been given. heads: KV heads of a layer.

    window: newest tokens of each head that always stay. protected: first tokens that go last (a kept prompt, sinks).
    """

    row: int
    tokens: int
    heads: int
    window: int
    protected: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class LayerView(RowView):
    """A row of one layer at a cut. layer: its number in the model. prompt: tokens of the row's prompt.

    protected_slots: of each head, how many of its slots are of protected tokens, the first of its scores; () for
    scorers, which see the positions themselves.
    """

    layer: int
    prompt: int
    protected_slots: tuple[int, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, eq=False)
class LayerScores:
    """A row of one layer at a cut in two phases, for parts that see all layers at once. Arrays are read-only.

    layer: its number in the model; order: among the layers that have a budget. For each of its KV heads:
        positions: [n] those of its slots, ascending, 0 = the row's first token;
        scores: [max(n - window, 0)] of the tokens before the window, oldest first; higher stays.
    """

    layer: int
    order: int
    positions: tuple[npt.NDArray[np.int32], ...]
    scores: tuple[npt.NDArray[np.float32], ...]


class HeadView:
    """One KV head of one row at the moment of a cut, for scorers written in Python. Oldest token first.

    config, layer, row, head: where this is. window: newest tokens that stay whatever their score.
    prompt: tokens of the prompt; tokens: of the row so far. Tensors are float32 copies on the CPU, read when asked for.
    scale, softcap: of the logits, as the model computes them (softcap 0: none).
    """

    def __init__(
        self, core: _core.Layer, head_dim: int, group: int, place: LayerView, head: int, config: Settings
    ) -> None:
        self._core, self._d, self._group = core, head_dim, group
        self.layer, self.row, self.head, self.config = place.layer, place.row, head, config
        self.window, self.prompt, self.tokens = place.window, place.prompt, place.tokens
        self.scale, self.softcap = core.scale, core.softcap

    def _read(self, values: bool) -> torch.Tensor:
        import torch

        out = np.empty((len(self.positions), self._d), np.float32)
        self._core.read(self.row, self.head, values, out)
        return torch.from_numpy(out)

    @cached_property
    def positions(self) -> torch.Tensor:
        """[n] positions in the row, 0 = its first token."""
        import torch

        return torch.frombuffer(bytearray(self._core.positions(self.row, self.head)), dtype=torch.int32).long()

    @cached_property
    def keys(self) -> torch.Tensor:
        """[n, d] keys as the model rotated them."""
        return self._read(values=False)

    @cached_property
    def values(self) -> torch.Tensor:
        """[n, d]"""
        return self._read(values=True)

    @cached_property
    def queries(self) -> torch.Tensor:
        """[group, w, d] queries of the newest w <= window tokens, of the query heads that share this KV head."""
        import torch

        count, raw = self._core.queries(self.row)
        every = torch.frombuffer(bytearray(raw), dtype=torch.float32).view(-1, count, self._d)
        return every[self.head * self._group : (self.head + 1) * self._group]
