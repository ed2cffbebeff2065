"""Draws the pictures of README.md and docs/results.md from benchmarks/results: `python docs/pictures.py`.

Each PNG has the digest of the JSON file that it was drawn from, so that a test can tell one that is out of date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from reasonalloc.lab.plots import COLORS
from reasonalloc.pictures import drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OTHER = "#b0b0b0"
# Cells of the sealed comparison: what they are called, and the colour.
SYSTEMS = {
    "order": ("wave, order 5", "#6d4c9f"),
    "heads": ("R-KV, head shares", "#2a9d8f"),
    "wave-heads": ("wave, head shares", OTHER),
    "wave": ("wave", OTHER),
    "reasonalloc": ("ReasonAlloc", COLORS["reasonalloc"]),
    "R-KV": ("R-KV", COLORS["rkv"]),
    "routing": ("routing", OTHER),
    "newer": ("H2O", "#e1a13c"),
}
CACHES = {
    "reasonalloc-128": ("ours, budget 128", COLORS["reasonalloc"]),
    "reasonalloc-256": ("ours, budget 256", "#6d8fbb"),
    "reasonalloc-512": ("ours, budget 512", "#9fb7d3"),
    "full": ("ours, nothing evicted", "#2a9d8f"),
    "static": ("StaticCache", "#e1a13c"),
    "dynamic": ("DynamicCache", COLORS["full"]),
}


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Ascending heights moved as little as keeps them so far apart."""
    groups: list[list[float]] = []  # of heights less the room for those below; means rise
    for i, height in enumerate(heights):
        groups.append([height - i * apart])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    return [mean + i * apart for i, mean in enumerate(fmean(group) for group in groups for _ in group)]


def beside(axis: Axes, at: float, labels: Iterable[tuple[float, float, str, str]], apart: float) -> None:
    """Labels (x and y of a line's end, text, colour) from `at` to the right, those that are close moved apart."""
    ordered = sorted(labels, key=lambda label: label[1])
    for (x, y, text, color), height in zip(ordered, spread([label[1] for label in ordered], apart), strict=True):
        axis.plot([x, at], [y, height], color=color, linewidth=0.6, alpha=0.6, zorder=0)
        axis.annotate(text, (at, height), (3, 0), textcoords="offset points", va="center", fontsize=8.5, color=color)


def sealed(data: dict[str, Any]) -> Figure:
    """Accuracy over mean bytes at 384 and 512 slots, the prompt kept and as any other text."""
    rows = {x["cell"]: x for x in data["rows"]}
    with drawn(None, 1, 2, (9.6, 4.4)) as (figure, axes):
        full = rows["full"]["accuracy"]["mean"]
        for axis, end, title in zip(axes[0], ("-kept", ""), ("Prompt kept", "Prompt as any other text"), strict=True):
            labels = []
            for cell, (name, color) in SYSTEMS.items():
                own = [rows[f"{cell}{end} {slots}"] for slots in (384, 512)]
                x, mean = [r["mean_bytes"] / 1e6 for r in own], [r["accuracy"]["mean"] for r in own]
                spread = [[r["accuracy"]["mean"] - r["accuracy"]["low"] for r in own],
                          [r["accuracy"]["high"] - r["accuracy"]["mean"] for r in own]]  # fmt: skip
                axis.errorbar(x, mean, yerr=spread, marker="o", markersize=4, linewidth=1.4, capsize=2, color=color,
                              zorder=1 if color == OTHER else 2)  # fmt: skip
                labels.append((x[1], mean[1], name, "#808080" if color == OTHER else color))
            axis.plot([9.3, 12.4], [full, full], color=COLORS["full"], linewidth=0.9, linestyle="--")
            size = rows["full"]["mean_bytes"] / 1e6
            axis.text(9.35, full - 0.02, f"full cache: {full:.0%}, {size:.1f} MB", va="top", fontsize=8.5,
                      color="#606060")  # fmt: skip
            beside(axis, 12.75, labels, 0.042)
            axis.set(title=title, xlabel="MB of a chain's cache, mean over its steps", xlim=(9.3, 14.6), ylim=(0, 1.02))
            axis.spines["bottom"].set_bounds(9.3, 12.4)
            axis.set_xticks([10, 11, 12])
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes[0][0].set_ylabel("questions right, 95 % interval")
        figure.suptitle("384 and 512 slots a head; ledger-135m, 96 problems, two chains each", fontsize=11, x=0.01,
                        ha="left")  # fmt: skip
    return figure


def throughput(data: dict[str, Any]) -> Figure:
    """Tokens per second at equal cache memory over the length of the chains."""
    best = {(x["cache"], x["chain"]): x["best"]["tokens_per_s"] for x in data["equal_memory"]}
    chains = sorted({chain for _, chain in best})
    with drawn(None, 1, 1, (6.4, 3.6)) as (figure, axes):
        axis, labels = axes[0][0], []
        for cache, (name, color) in CACHES.items():
            speeds = [best[cache, chain] for chain in chains]
            axis.plot(range(len(chains)), speeds, marker="o", markersize=4, linewidth=1.6, color=color)
            labels.append((len(chains) - 1.0, speeds[-1], f"{name}: {speeds[-1]:.0f}", color))
        beside(axis, len(chains) - 0.93, labels, 17)
        axis.spines["bottom"].set_bounds(-0.1, len(chains) - 1)
        axis.set_xticks(range(len(chains)), [f"{x:,}" for x in chains])
        axis.set(xlabel="tokens of each chain", ylabel="tokens per second", ylim=(0, None), xlim=(-0.1, 3.15))
        axis.set_title(f"{data['memory_limit'] / 1e9:.0f} GB of cache, the best batch: SmolLM2-135M on two cores")
    return figure


# Of docs/: how it is drawn, and from what.
PICTURES = {"sealed.png": (sealed, "evidence/evidence.json"), "throughput.png": (throughput, "throughput.json")}


def main(folder: Path = ROOT / "docs") -> None:
    for name, (draw, file) in PICTURES.items():
        text = (RESULTS / file).read_bytes()
        source = f"benchmarks/results/{file} sha256 {hashlib.sha256(text).hexdigest()}"
        draw(json.loads(text)).savefig(folder / name, format="png", metadata={"Source": source})


if __name__ == "__main__":
    main()
