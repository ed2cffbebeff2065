"""What a method is: a scorer, a layer allocator, a head allocator and a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc import _core, allocate

if TYPE_CHECKING:
    from reasonalloc.config import Config


class HeadView:
    """One KV head of one row at the moment of a cut, for scorers written in Python. Oldest token first.

    config, layer, row, head: where this is. window: newest tokens that stay whatever their score.
    prompt: tokens of the prompt. Tensors are float32 copies on the CPU, read when asked for.
    """

    def __init__(
        self, core: _core.Layer, head_dim: int, group: int, layer: int, row: int, head: int, prompt: int, config: Config
    ) -> None:
        self._core, self._d, self._group, self.window = core, head_dim, group, config.window
        self.layer, self.row, self.head, self.prompt, self.config = layer, row, head, prompt, config

    def _read(self, values: bool) -> torch.Tensor:
        out = np.empty((len(self.positions), self._d), np.float32)
        self._core.read(self.row, self.head, values, out)
        return torch.from_numpy(out)

    @cached_property
    def positions(self) -> torch.Tensor:
        """[n] positions in the row, 0 = its first token."""
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
        count, raw = self._core.queries(self.row)
        every = torch.frombuffer(bytearray(raw), dtype=torch.float32).view(-1, count, self._d)
        return every[self.head * self._group : (self.head + 1) * self._group]


@dataclass(frozen=True)
class Method:
    """Base of all methods. Fields choose parts by name; overriding a function replaces a part by Python code.

    A subclass may override
        score(view: HeadView) -> [n] or [n - window] numbers (tensor, array or list), higher stays;
        head_budgets(scores, total, config) -> integers, one for each head, that sum to total;
        layer_totals(demand, total, heads, config) -> integers, one for each layer, that sum to total.
    Its own dataclass fields are set by Config(options={...}); `files` names those that are paths which must exist.
    """

    scorer: str = "rkv"
    layers: str = "uniform"
    heads: str = "uniform"
    interval: int = 128
    keep_prompt: bool = False
    sinks: int = 0

    name: ClassVar[str] = ""
    unlimited: ClassVar[bool] = False
    files: ClassVar[tuple[str, ...]] = ()

    def score(self, view: HeadView) -> Any:
        raise NotImplementedError  # the C scorer named by `scorer` is used instead

    def head_budgets(self, scores: list[npt.NDArray[np.float32]], total: int, config: Config) -> Any:
        """Head budgets of one layer, by the C allocator named by `heads`."""
        return allocate.route(
            scores,
            total,
            heads=self.heads,
            window=config.window,
            gamma=config.gamma,
            lo=config.lo,
            hi=config.hi,
            mu=config.mu,
            safeguard=config.safeguard,
        )

    def layer_totals(self, demand: npt.NDArray[np.float64], total: int, heads: int, config: Config) -> Any:
        """Slots of each layer. demand: each layer's (all ones unless `layers` is "wave"). Every head's window fits."""
        floor = heads * config.window
        if self.layers == "pyramid":
            return allocate.pyramid(len(demand), total, config.beta, floor)
        return allocate.robustify(demand, total, config.gamma, config.lo, config.hi, floor)

    @property
    def scores_in_python(self) -> bool:
        return type(self).score is not Method.score

    @property
    def routes_in_python(self) -> bool:
        return type(self).head_budgets is not Method.head_budgets

    @property
    def needs_wave(self) -> bool:
        return self.layers == "wave" and not self.unlimited
