"""Draws the loss curve of runs that followed each other: `python training/curve.py PNG FOLDER ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from reasonalloc.files import json_lines


def draw(path: Path, folders: Sequence[Path]) -> None:
    """Loss and share of likeliest tokens over the tokens seen, dots and a running median, length of the sequences."""
    rows, starts = [], [0]
    for folder in folders:
        own = [row for _, row in json_lines(folder / "log.jsonl")]
        rows += [x | {"seen": starts[-1] + x["seen"]} for x in own]
        starts.append(rows[-1]["seen"])
    seen = np.array([x["seen"] for x in rows]) / 1e6
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = (
        ("loss", "loss (nats a token)", True),
        ("right", "chain tokens not the likeliest", True),
        ("length", "tokens of a sequence", False),
    )
    for axis, (name, label, log) in zip(figure.subplots(3, 1, sharex=True), panels, strict=True):
        values = np.array([x[name] for x in rows], dtype=float)
        if name == "right":
            values = np.maximum(1 - values, 1e-4)
        axis.plot(seen, values, ".", markersize=3, color="#3b6ea5", alpha=0.5)
        middle = [np.median(values[max(0, i - 12) : i + 13]) for i in range(len(values))]
        axis.plot(seen, middle, color="#c44e52", linewidth=1.5)
        for start in starts[1:-1]:
            axis.axvline(start / 1e6, color="#888888", linewidth=0.8, linestyle="--")
        axis.set_ylabel(label)
        if log:
            axis.set_yscale("log")
        axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("million tokens seen")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), [Path(x) for x in sys.argv[2:]])
