"""The picture of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reasonalloc.lab.rlkv.settings import Line
from reasonalloc.pictures import drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gates(
    lines: Sequence[Line], values: npt.NDArray[np.float32], objective: str, path: str | Path | None = None
) -> Figure:
    """Reward or loss, mean gate and sparsity over the steps; the gates [L, H] at their end."""
    steps = [x.step for x in lines]
    with drawn(path, 1, 3, (13, 3.6)) as (figure, axes):
        left, middle, right = axes[0]
        left.plot(steps, [x.reward if objective == "rlkv" else x.loss for x in lines])
        left.set(title="mean reward" if objective == "rlkv" else "loss", xlabel="step")
        middle.plot(steps, [x.mean_gate for x in lines], label="mean gate")
        middle.plot(steps, [x.sparsity for x in lines], label="share of gates below 0.5")
        middle.set(title="gates", xlabel="step", ylim=(-0.02, 1.02))
        middle.legend()
        image = right.imshow(values.T, aspect="auto", vmin=0, vmax=1, cmap="viridis", origin="lower")
        right.set(title="gate of each head", xlabel="layer", ylabel="KV head", yticks=range(values.shape[1]))
        figure.colorbar(image, ax=right)
    return figure
