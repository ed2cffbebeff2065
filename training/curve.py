"""Draws the loss curve of a run: `python training/curve.py FOLDER PNG`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def draw(folder: Path, path: Path) -> None:
    """Loss and share of likeliest tokens over the tokens seen, dots and a running median, length of the sequences."""
    rows = [json.loads(x) for x in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
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
        axis.set_ylabel(label)
        if log:
            axis.set_yscale("log")
        axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("million tokens seen")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
