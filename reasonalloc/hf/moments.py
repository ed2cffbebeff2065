"""Sums over the queries, keys and values of one layer, from which a calibration is made."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from reasonalloc.hf.rotation import Rotation
from reasonalloc.policy.calibration import QUANTILES, LayerCalibration

_MOST_TAIL = 1024  # numbers of each channel at either end


class Tails:
    """Quantiles of channels near both ends, exact for as many tokens as were announced.

    It keeps the least and the greatest numbers of each channel. Of more tokens than `_MOST_TAIL` allows for, every
    second, third, ... is taken.
    """

    def __init__(self, tokens: int) -> None:
        self.stride = max(1, math.ceil(tokens * QUANTILES[0] / (_MOST_TAIL - 2)))
        self.most = int(QUANTILES[0] * math.ceil(tokens / self.stride)) + 2
        self.seen = self.count = 0
        self.least: torch.Tensor | None = None
        self.greatest: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        """x: [H, T, D]."""
        taken = x[:, -self.seen % self.stride :: self.stride]
        self.seen += x.shape[1]
        self.count += taken.shape[1]
        low, high = (taken if y is None else torch.cat([y, taken], 1) for y in (self.least, self.greatest))
        self.least = low.sort(1).values[:, : self.most]
        self.greatest = high.sort(1, descending=True).values[:, : self.most]

    def quantiles(self) -> torch.Tensor:
        """[2, H, D], between the two nearest numbers as torch.quantile has it."""
        if self.least is None or self.greatest is None or not self.count:
            raise ValueError("ranges need texts of at least two tokens")
        place = QUANTILES[0] * (self.count - 1)
        below, part = int(place), place - int(place)
        above = min(below + 1, self.count - 1)
        ends = [x[:, below] + part * (x[:, above] - x[:, below]) for x in (self.least, self.greatest)]
        return torch.stack(ends).float().cpu()


class LayerSums:
    """What is gathered of one layer. parts: of "queries", "moments", "ranges", "fisher". tokens: how many will come."""

    def __init__(self, rotation: Rotation, parts: Collection[str], tokens: int) -> None:
        self.rotation, self.parts = rotation, parts
        self.count = self.gradients = 0
        self.sums: dict[str, torch.Tensor] = {}
        self.tails = {"key": Tails(tokens), "value": Tails(tokens)}

    def _sum(self, name: str, x: torch.Tensor) -> None:
        x = x.double().cpu()
        self.sums[name] = self.sums[name] + x if name in self.sums else x

    def _positions(self, begin: int, tokens: int) -> torch.Tensor:
        return torch.arange(begin, begin + tokens)

    def add(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, begin: int) -> None:
        """[heads, T, D] of the tokens at positions begin, begin + 1, ..."""
        back = -self._positions(begin, query.shape[1])
        self.count += query.shape[1]
        if "queries" in self.parts:
            query = self.rotation.turned(query.float(), back)
            a, b = self.rotation.split(query)
            self._sum("query_mean", query.sum(1, dtype=torch.float64))
            self._sum("query_length", torch.hypot(a, b).sum(1, dtype=torch.float64))
        if not {"moments", "ranges"} & set(self.parts):
            return
        key, value = self.rotation.turned(key.float(), back), value.float()
        for name, x in (("key", key), ("value", value)):
            if "moments" in self.parts:
                self._sum(f"{name}_moment", x.transpose(1, 2) @ x)
            if "ranges" in self.parts:
                self.tails[name].add(x[:, 1:] if begin == 0 else x)  # the first token is a sink: far out, and stays

    def add_gradient(self, name: str, gradient: torch.Tensor) -> None:
        """Of the loss by keys or values [H, T, D] at positions 0, 1, ..."""
        gradient = gradient.detach().float()
        if name == "key":
            gradient = self.rotation.turned(gradient, -self._positions(0, gradient.shape[1]))
        else:
            self.gradients += gradient.shape[1]
        self._sum(f"{name}_fisher", gradient.square().sum(1))

    def result(self) -> LayerCalibration:
        """The means."""
        found = {
            name: (x / (self.gradients if name.endswith("fisher") else self.count)).float()
            for name, x in self.sums.items()
        }
        if "ranges" in self.parts:
            found |= {f"{name}_range": x.quantiles() for name, x in self.tails.items()}
        return LayerCalibration(self.rotation.frequency, self.rotation.interleaved, self.rotation.scaling, **found)
