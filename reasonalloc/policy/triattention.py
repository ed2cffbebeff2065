"""TriAttention's scores: needs a calibration of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reasonalloc import _core
from reasonalloc.policy.calibration import Calibration, LayerCalibration
from reasonalloc.policy.scorers import SCORERS, CoreScorer
from reasonalloc.policy.setting import choice
from reasonalloc.policy.view import LayerScores, Numbers, RowView
from reasonalloc.protocols import Model


@SCORERS.enter("triattention")
@dataclass(frozen=True)
class TriAttention(CoreScorer):
    """TriAttention's (arXiv 2604.04921): what queries of the calibrated distribution will find in a key.

    A key scores the expected logit of queries 1, 2, 4, ..., 65536 tokens ahead, by the mean of the layer's queries, and
    by its length times how far queries spread around that mean. Each query head's scores are standardised over the
    tokens that may go.

    calibration: of the model, with its queries; `Config(calibration=...)`. offsets: their "mean" (the paper's) or "max"
    (an option of the code). group: "max" of the query heads that share a KV head (the paper's) or their "mean".
    selection: as the code names it; "per_layer_per_head": each head its own tokens; "per_head": each KV head the same
    in all layers, by the mean over them; "union": all heads of all layers the same, by the best of their scores (the
    union of all heads' own choices, ranked by their best score, begins with the same tokens).
    """

    calibration: Calibration | None = None
    offsets: str = choice("mean", "mean", "max")
    group: str = choice("max", "max", "mean")
    selection: str = choice("per_layer_per_head", "per_layer_per_head", "per_head", "union")

    core: ClassVar[str] = "triattention"

    def check_complete(self) -> None:
        if self.calibration is None:
            raise ValueError(
                "scorer 'triattention' needs a calibration: Config(calibration=ra.calibrate(model, tokenizer, texts)),"
                " or the file of one"
            )
        if "queries" not in self.calibration.holds:
            raise ValueError(
                f"scorer 'triattention' needs the queries of a calibration, this one holds {self.calibration.holds}"
            )

    def check(self, model: Model, layers: Sequence[int]) -> None:
        self.check_complete()
        self._calibration.check(model, layers)

    @property
    def sees_layers(self) -> bool:
        return self.selection != "per_layer_per_head"

    def across(self, layers: Sequence[LayerScores], view: RowView) -> Sequence[Sequence[Numbers]]:
        """The mean over the layers for each KV head, or the best score of all for all: one set of tokens for each."""
        if len({len(x) for layer in layers for x in layer.scores}) > 1:
            raise ValueError(f"selection {self.selection!r} needs all layers to hold the same tokens: uniform budgets")
        scores = np.stack([np.stack(layer.scores) for layer in layers])  # [L, H, n]
        one = scores.mean(0) if self.selection == "per_head" else np.broadcast_to(scores.max((0, 1)), scores.shape[1:])
        return [list(one)] * len(layers)

    @property
    def _calibration(self) -> Calibration:
        if self.calibration is None:
            raise RuntimeError("made without a calibration")
        return self.calibration

    def prepare(self, core: _core.Layer, layer: int) -> None:
        calibration = self._calibration.layers[layer]
        core.set_centres(
            calibration.frequency.numpy(),
            *_queries(calibration),
            calibration.interleaved,
            self.offsets == "max",
            self.group == "mean",
        )


def _queries(layer: LayerCalibration) -> tuple[np.ndarray, np.ndarray]:
    mean, length = layer.query_mean, layer.query_length
    if mean is None or length is None:
        raise ValueError("a layer of the calibration has no queries")
    return tuple(np.ascontiguousarray(x.numpy()) for x in (mean, length))  # type: ignore[return-value]
