"""Head budgets that were measured beforehand: the same shares for every text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from reasonalloc import allocate
from reasonalloc.policy.calibration import Calibration, LayerCalibration
from reasonalloc.policy.gates import ModelShape, read_layers
from reasonalloc.policy.heads import HEADS, CoreHeads, HeadArguments
from reasonalloc.policy.setting import file_name, setting
from reasonalloc.policy.view import LayerView, Numbers
from reasonalloc.protocols import Model

Shares = npt.NDArray[np.float64]


def of_layers(path: str | Path, shape: ModelShape) -> Shares:
    """[layers with a budget, H] shares out of a file, which has a line for each of these layers or for all.

    ValueError, naming the file, for shares of another model or below 0.
    """
    shares = read_layers(path, shape, "shares")
    if (shares < 0).any() or not (shares.sum(1) > 0).all():
        raise ValueError(f"{path}: the shares of a layer must not be below 0, nor all of them 0")
    return shares


@HEADS.enter("profile")
@dataclass(frozen=True)
class ProfiledHeads(CoreHeads):
    """Static shares of a layer's heads, measured on other texts (`hf.head_profile`), above prompt and window.

    Every head first gets room for what is protected and the window; the rest of the layer's total follows the shares,
    clipped to [head_lo, head_hi] times the mean. A layer whose total holds no more than that is cut evenly.
    head_profile: file of the shares, a line for each layer, a number for each KV head; without one they are those of
    the calibration, `Config(calibration=ra.calibrate(model, tokenizer, prompts, for_="heads"))`.

    correction: shares times claim ** correction; a head's claim is the number of its tokens among the layer's best, as
    many as there are slots to share out, which is what online routing follows (arXiv 2606.11164). 0: none. Claims
    compare scores of heads: take a scorer whose level does not depend on a head's slots, as "rkv-centred". It is in
    Python; without it the part is in C.
    """

    head_profile: str = file_name()
    head_lo: float = setting(0.25, 0, 1)
    head_hi: float = setting(2.5, 1, 1e6)
    correction: float = setting(0.0, 0, 4)
    calibration: Calibration | None = None
    table: dict[int, Shares] | None = field(default=None, init=False, repr=False, compare=False)

    core: ClassVar[str] = "shares"

    @property
    def in_python(self) -> bool:
        return bool(self.correction) or type(self).shares is not ProfiledHeads.shares

    def fitted(self, shape: ModelShape) -> ProfiledHeads:
        """The same for a model; ValueError where the file is not there or of another model."""
        twin = copy.copy(self)
        if self.head_profile:
            table = dict(zip(shape.budgeted, of_layers(self.head_profile, shape), strict=True))
        else:
            table = _of_calibration(self._measured().layers)
        object.__setattr__(twin, "table", table)
        return twin

    def check(self, model: Model, layers: Sequence[int]) -> None:
        if not self.head_profile:
            self._measured().check(model, layers)

    def _measured(self) -> Calibration:
        if self.calibration is None or "heads" not in self.calibration.holds:
            there = "" if self.calibration is None else f", this one holds {', '.join(self.calibration.holds)}"
            raise ValueError(
                f"{self.title} needs the file 'head_profile', Config(options={{'head_profile': ...}}), or a calibration"
                f" with heads, Config(calibration=ra.calibrate(model, tokenizer, prompts, for_='heads')){there}"
            )
        return self.calibration

    def arguments(self, order: int = 0) -> HeadArguments:
        shares = list(self._of_layers().values())[order]
        return HeadArguments(self.core, 1.0, self.head_lo, self.head_hi, per_head=shares.tobytes())

    def _of_layers(self) -> dict[int, Shares]:
        """By the number of the layer in the model, ascending."""
        if self.table is None:
            raise ValueError(f"{self.title} is not fitted to a model")
        return self.table

    def shares(self, scores: Sequence[npt.NDArray[np.float32]], total: int, view: LayerView) -> Numbers:
        table = self._of_layers()
        spared = view.protected + view.window
        rest = total - spared * view.heads
        if rest <= 0:
            return allocate.robustify(np.ones(view.heads), total, floor=view.window)
        shares = table[view.layer]
        if self.correction:
            chain = [x[spared:] for x, spared in zip(scores, view.protected_slots, strict=True)]
            shares = shares * _claims(chain, rest) ** self.correction
        return spared + allocate.robustify(shares, rest, 1.0, self.head_lo, self.head_hi)


def _of_calibration(layers: Mapping[int, LayerCalibration]) -> dict[int, Shares]:
    found = {i: layer.head_share for i, layer in layers.items()}
    return {i: x.double().numpy() for i, x in found.items() if x is not None}


def _claims(scores: Sequence[npt.NDArray[np.float32]], slots: int) -> Shares:
    """Of each head, how many of its scores are among the `slots` best of all; ties with the last of them count."""
    pooled = np.concatenate(scores)
    if len(pooled) <= slots:  # all are among the best
        return np.ones(len(scores))
    least = np.partition(pooled, -slots)[-slots]
    return np.array([np.count_nonzero(x >= least) for x in scores], dtype=np.float64)
