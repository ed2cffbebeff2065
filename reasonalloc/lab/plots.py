"""Pictures: the wave, budgets over time, fidelity over budget. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from reasonalloc.pictures import available, budgets, drawn
from reasonalloc.policy.wave import WaveProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reasonalloc.lab.evaluate.fidelity import Fidelity, Point
    from reasonalloc.lab.evaluate.statistics import Measure
    from reasonalloc.lab.evaluate.summary import Row, Summary
    from reasonalloc.lab.evaluate.transfer_result import Transfer

PointT = TypeVar("PointT", bound="Point | Row")

__all__ = ["accuracy", "available", "budgets", "cells", "fidelity", "gain", "transfer", "varied", "wave"]

COLORS = {"full": "#888888", "rkv": "#c44e52", "reasonalloc": "#3b6ea5"}  # distinct to the colour-blind too
_OTHERS = ("#e1a13c", "#6d4c9f", "#2a9d8f")
_SMOOTH = 16  # steps over which a speed is taken


def wave(profile: WaveProfile, path: str | Path | None, name: str) -> Figure:
    """The demand of each layer as bars. name: the model's, for the title."""
    return profile.plot(path, name=name)


_PANELS = (
    ("excess_nll", "NLL above the full cache\n(nats a token)"),
    ("kl", "KL(full || compressed)\n(nats a token)"),
    ("agreement", "top-1 agreement\nwith the full cache"),
)


def fidelity(result: Fidelity, path: str | Path | None = None) -> Figure:
    """Three panels over the budget (or ratio, or bytes) and three over the mean bytes of a cache, one line a method,
    bars for the bootstrap intervals. What has no such size is over the bytes alone."""
    lines: dict[str, list[Point]] = {}
    for point in result.points:
        if point.method != "full":
            lines.setdefault(point.name, []).append(point)
    every = [x for points in lines.values() for x in points]
    kind = _kind(every)
    with drawn(path, 2, 3, (12, 7.2)) as (figure, axes):
        for above, below, (metric, label) in zip(axes[0], axes[1], _PANELS, strict=True):
            for i, (method, points) in enumerate(lines.items()):
                _line(above, metric, method, points, kind, i, shift=i - (len(lines) - 1) / 2)
                _line_over_bytes(below, metric, method, points, i)
            above.set(xlabel=_SIZES[kind], ylabel=label)
            below.set(xlabel="MiB of pages, mean over steps", ylabel=label)
            for axis in (above, below):
                axis.axhline(1.0 if metric == "agreement" else 0.0, color="#888888", linewidth=0.8, linestyle="--")
            _budget_axis(above, every, kind)
        if lines:
            handles, labels = axes[1][0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(len(lines), 6))
        model = result.provenance.get("model", "")
        figure.suptitle(
            f"Fidelity under teacher forcing{f', {model}' if model else ''} (dashed: full cache)", fontsize=11
        )
    return figure


def _bars(measures: Sequence[Measure]) -> npt.NDArray[np.float64] | None:
    """[2, n] lengths of error bars; None where a measure has no interval."""
    if any(m.low is None or m.high is None for m in measures):
        return None
    return np.array([[m.mean - (m.low or 0.0) for m in measures], [(m.high or 0.0) - m.mean for m in measures]]).clip(0)


# What a first axis may be of, the first of them that anything has.
_SIZES = {
    "max_bytes": "MiB of the whole cache",
    "budget": "budget (slots a KV head)",
    "ratio": "share of the full cache",
}


def _kind(points: Sequence[Point | Row]) -> str:
    return next((x for x in _SIZES if any(getattr(p, x, None) is not None for p in points)), "budget")


def _sized(points: Iterable[PointT], kind: str) -> list[PointT]:
    """Those that have such a size, the smallest first."""
    return sorted((p for p in points if getattr(p, kind, None) is not None), key=lambda p: float(getattr(p, kind)))


def _places(points: Sequence[Point | Row], kind: str, shift: float = 0.0) -> npt.NDArray[np.float64]:
    """shift: side by side with others, so that bars do not cover each other."""
    x = np.array([float(getattr(p, kind)) for p in points]) / (2**20 if kind == "max_bytes" else 1)
    return x + 0.003 * shift if kind == "ratio" else x * 1.02**shift


def _budget_axis(axis: Axes, points: Sequence[Point | Row], kind: str) -> None:
    """A mark at each size, with room beside the outermost: a single one stands in the middle."""
    marks = sorted(set(_places(_sized(points, kind), kind).tolist()))
    near = [x for x, y in pairwise(marks) if kind != "ratio" and y < 1.08 * x]  # their numbers would cover each other
    if marks and kind != "ratio":
        axis.set_xscale("log", base=2)
        axis.set_xlim(marks[0] / 1.25, marks[-1] * 1.25)
    elif marks:
        axis.set_xlim(marks[0] - 0.03, marks[-1] + 0.03)
    axis.set_xticks(marks, ["" if x in near else f"{x:g}" for x in marks], minor=False)
    axis.minorticks_off()


def _line(axis: Axes, metric: str, method: str, points: list[Point], kind: str, number: int, shift: float) -> None:
    points = _sized(points, kind)
    _bar_line(axis, _places(points, kind, shift), [getattr(p, metric) for p in points], method, number)


def _line_over_bytes(axis: Axes, metric: str, method: str, points: list[Point], number: int) -> None:
    points = sorted(points, key=lambda p: p.mean_bytes.mean)
    places = np.array([p.mean_bytes.mean / 2**20 for p in points])
    _bar_line(axis, places, [getattr(p, metric) for p in points], method, number)


def _bar_line(axis: Axes, x: npt.NDArray[np.float64], measures: Sequence[Measure], label: str, number: int) -> None:
    """number: of the line, for its colour."""
    if measures:
        axis.errorbar(x, [m.mean for m in measures], yerr=_bars(measures), marker="o", markersize=4, linewidth=1.4,
                      capsize=2, label=label, color=f"C{number}")  # fmt: skip


def accuracy(result: Summary, path: str | Path | None = None, title: str = "") -> Figure:
    """Accuracy over the budget (or ratio) and over the mean bytes of a chain, one line a method with bars for the
    intervals; the full cache as a band, and where its bytes are as a mark. Rows without a budget (or ratio, where no
    row has a budget) are over the bytes alone."""
    full = [x for x in result.rows if x.method == "full"]
    lines: dict[str, list[Row]] = {}
    for row in result.rows:
        if row.method != "full":
            lines.setdefault(row.method, []).append(row)
    kind = _kind(result.rows)
    with drawn(path, 1, 2, (12, 4.2)) as (figure, axes):
        over_budget, over_bytes = axes[0]
        for axis in axes[0]:
            for row in full:
                axis.axhline(row.accuracy.mean, color="#888888", linewidth=0.9, linestyle="--", label="full")
                if row.accuracy.low is not None:
                    axis.axhspan(row.accuracy.low, row.accuracy.high, color="#888888", alpha=0.15, linewidth=0)
            axis.set(ylabel="accuracy (pass@1)", ylim=(-0.03, 1.03))
        for i, (method, rows) in enumerate(lines.items()):
            sized = _sized(rows, kind)
            places = _places(sized, kind, shift=i - (len(lines) - 1) / 2)
            _bar_line(over_budget, places, [x.accuracy for x in sized], method, i)
            rows.sort(key=lambda row: row.mean_bytes)
            places = np.array([row.mean_bytes / 1e6 for row in rows])
            _bar_line(over_bytes, places, [x.accuracy for x in rows], method, i)
        for row in full:
            over_bytes.plot(row.mean_bytes / 1e6, row.accuracy.mean, marker="s", markersize=5, color="#888888")
        _budget_axis(over_budget, result.rows, kind)
        over_budget.set(xlabel=_SIZES[kind])
        over_bytes.set(xlabel="MB of a chain's pages, mean over its steps")
        over_bytes.set_xlim(left=0)
        title = title or f"Accuracy, {result.provenance.get('model', '')}".rstrip(", ")
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        figure.legend(*over_bytes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def cells(result: Summary, path: str | Path | None = None, title: str = "") -> Figure:
    """Each row from top to bottom: left its accuracy with the interval and, beside it, Holm's p of its difference to
    R-KV; right the length and the mean bytes of its chains. Dashed: the full cache and R-KV."""
    with drawn(path, 1, 3, (13, 1.3 + 0.3 * len(result.rows))) as (figure, axes):
        left, right, memory = axes[0]
        right.sharey(left)
        memory.sharey(left)
        dashed = {"full", next((x.cell for x in result.rows if x.method == "rkv"), "")}
        for i, row in enumerate(result.rows):
            color = COLORS.get(row.method, "#55a868")
            left.errorbar(row.accuracy.mean, i, xerr=_bars([row.accuracy]), fmt="o", markersize=5, color=color)
            right.barh(i, row.tokens, height=0.6, color=color, alpha=0.8, linewidth=0)
            memory.barh(i, row.mean_bytes / 1e6, height=0.6, color=color, alpha=0.8, linewidth=0)
            if row.cell in dashed:
                left.axvline(row.accuracy.mean, color=color, linewidth=0.8, linestyle="--", zorder=0)
            for pair in row.against:
                if pair.against.startswith("rkv"):
                    where = ("axes fraction", "data")
                    left.annotate(f"p {pair.holm:.2g}", (1.01, i), xycoords=where, va="center", fontsize=8)
        left.set_yticks(range(len(result.rows)), [x.cell for x in result.rows])
        left.invert_yaxis()
        right.tick_params(labelleft=False)
        memory.tick_params(labelleft=False)
        left.set(xlabel="accuracy (pass@1), 95 % interval; p of the difference to R-KV (Holm)")
        right.set(xlabel="tokens of a chain")
        memory.set(xlabel="MB of its pages, mean over steps")
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def varied(
    result: Summary, name: str, values: Mapping[str, float], path: str | Path | None = None, title: str = ""
) -> Figure:
    """Accuracy and length of the chains over a number that varies, the full cache and R-KV as lines across.

    name: the number's. values: the number of each cell, by its name; other cells are left out.
    """
    rows = sorted((x for x in result.rows if x.cell in values), key=lambda x: values[x.cell])
    places = np.array([values[x.cell] for x in rows])
    measures: dict[str, Callable[[Row], float]] = {
        "accuracy (pass@1), 95 % interval": lambda x: x.accuracy.mean,
        "tokens of a chain": lambda x: x.tokens,
    }
    with drawn(path, 1, 2, (10, 3.8)) as (figure, axes):
        for axis, (label, measure) in zip(axes[0], measures.items(), strict=True):
            for row in result.rows:
                if row.cell == "full" or row.method == "rkv":
                    value, color = measure(row), COLORS[row.method]
                    axis.axhline(value, color=color, linewidth=0.9, linestyle="--")
                    where = ("axes fraction", "data")
                    axis.annotate(row.cell, (1.01, value), xycoords=where, va="center", fontsize=8, color=color)
            bars = _bars([x.accuracy for x in rows]) if axis is axes[0][0] else None
            axis.errorbar(
                places, [measure(x) for x in rows], yerr=bars, fmt="o-", markersize=4, linewidth=1.4, capsize=2,
                color=COLORS["reasonalloc"],
            )  # fmt: skip
            if len(places) and places.min() > 0 and places.max() / places.min() >= 8:
                axis.set_xscale("log", base=2)
            axis.set_xticks(places, [f"{x:g}" for x in places])
            axis.minorticks_off()
            axis.set(xlabel=name, ylabel=label, ylim=(-0.03, 1.03) if bars is not None else (0, None))
        figure.suptitle(title or name, fontsize=11, x=0.01, ha="left")
    return figure


def transfer(result: Transfer, path: str | Path | None = None) -> Figure:
    """Left the tasks' waves, each as a share with the range of its prompts; right the distances of single prompts."""
    with drawn(path, 1, 2, (12, 4.2)) as (figure, axes):
        axis, other = axes[0]
        for i, task in enumerate(result.tasks):
            own = np.array([x.demand for x in result.chains if x.task == task])
            own = own / own.mean(1, keepdims=True)
            wave = np.array(result.profiles[task].demand)
            axis.plot(
                result.layers, wave / wave.mean(), color=f"C{i}", linewidth=1.5, marker="o", markersize=3, label=task
            )
            axis.fill_between(result.layers, own.min(0), own.max(0), color=f"C{i}", alpha=0.12, linewidth=0)
        axis.axhline(1.0, color="#888888", linewidth=0.8, linestyle="--")
        axis.set(title="Waves (bands: single prompts)", xlabel="layer", ylabel="demand over the mean of layers")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=6)
        means = np.array(result.wave.prompts.means, dtype=np.float64)  # None becomes NaN
        mesh = other.imshow(means, cmap="viridis", aspect="auto")
        middle = (np.nanmax(means) + np.nanmin(means)) / 2 if np.isfinite(means).any() else 0.0
        for i, row in enumerate(means):
            for j, value in enumerate(row):
                text = "" if np.isnan(value) else f"{value:.2f}"
                other.text(j, i, text, ha="center", va="center", color="black" if value > middle else "white")
        ticks = range(len(result.tasks))
        other.set_xticks(ticks, result.tasks, rotation=30)
        other.set_yticks(ticks, result.tasks)
        other.set(title="Mean distance of two prompts' waves")
        figure.colorbar(mesh, ax=other, label="Earth Mover's Distance (layers)")
        model = result.provenance.get("model", "")
        figure.suptitle(f"The wave across tasks{f', {model}' if model else ''}", fontsize=11)
    return figure


def gain(
    methods: Sequence[str],
    names: Sequence[str],
    memory: Sequence[npt.NDArray[np.float64]],
    speed: Sequence[npt.NDArray[np.float64]],
    right: Sequence[float],
    path: str | Path | None,
    title: str,
) -> Figure:
    """What caches cost and give: bytes of a chain and tokens a second over the steps, answers right.

    methods: for the colours. memory: [steps] bytes of each; speed: [steps] tokens a second; right: shares.
    """
    others = iter(_OTHERS * len(methods))
    colors = [COLORS[x] if x in COLORS else next(others) for x in methods]
    with drawn(path, 1, 3, (12, 3.8)) as (figure, axes):
        left, middle, bars = axes[0]
        for name, color, sizes, speeds in zip(names, colors, memory, speed, strict=True):
            left.plot(np.arange(len(sizes)), sizes / 1e6, color=color, linewidth=1.8, label=name)
            count = min(_SMOOTH, max(1, len(speeds)))
            smooth = np.convolve(speeds, np.ones(count) / count, "valid") if len(speeds) else speeds
            middle.plot(np.arange(len(smooth)) + count // 2, smooth, color=color, linewidth=1.8)
        for i, (color, share) in enumerate(zip(colors, right, strict=True)):
            bars.bar(i, share, width=0.7, color=color)
            bars.text(i, share + 0.02, f"{share:.0%}", ha="center")
        left.set(title="Cache of a chain, MB", xlabel="tokens after the prompt", ylim=(0, None))
        middle.set(title="Tokens a second, all chains", xlabel="tokens after the prompt", ylim=(0, None))
        bars.set(title="Answers right", ylim=(0, 1.12))
        bars.set_xticks([])
        bars.set_yticks([])
        bars.spines["left"].set_visible(False)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure
