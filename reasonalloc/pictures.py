"""Figures in one style, and the pictures of a wave and of budgets. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSTALL = "pip install '.[demo]' in a checkout of reasonalloc"
_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "font.size": 10,
    "figure.dpi": 130,
    "legend.frameon": False,
}


def available() -> None:
    """ModuleNotFoundError, with the command that helps, where matplotlib is missing."""
    try:
        import matplotlib.backends.backend_agg  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(f"pictures need matplotlib: {INSTALL}") from error


@cache
def _kind() -> type[Figure]:
    """A Figure that a notebook shows, whatever the user's backend is."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_png_(self) -> bytes:
            out = io.BytesIO()
            self.savefig(out, format="png")
            return out.getvalue()

    return Picture


@contextmanager
def drawn(path: str | Path | None, rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Figure, Any]]:
    """(figure, axes [rows][columns]) to draw on; saved as PNG at the end if there is a path. ModuleNotFoundError
    without matplotlib."""
    available()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(_STYLE):  # no pyplot: its state and backend are the user's
        figure = _kind()(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        yield figure, axes
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="png")


def wave(
    layers: Sequence[int], demand: Sequence[float], rho: float, path: str | Path | None = None, name: str = ""
) -> Figure:
    """The demand of each layer as bars. name: the model's, for the title."""
    with drawn(path, 1, 1, (8, 3.4)) as (figure, axes):
        axis = axes[0][0]
        axis.bar(layers, demand, width=0.8, color="#3b6ea5")
        axis.axhline(sum(demand) / len(demand), color="#c44e52", linewidth=1, label="mean")
        axis.set(
            title=f"The reasoning wave{f' of {name}' if name else ''}",
            xlabel="layer",
            ylabel=f"tokens that hold {rho:.0%}\nof the attention",
        )
        axis.margins(x=0.01)
        axis.legend(loc="upper center")
    return figure


def budgets(
    times: Sequence[int],
    values: npt.NDArray[np.int64],
    layers: Sequence[int],
    path: str | Path | None,
    title: str,
    end: int,
) -> Figure:
    """Heat map of the budget of each KV head over time.

    times: [n] tokens of the sequence at each cut, ascending. values: [n, layers, heads] budgets from then on. layers:
    their numbers in the model. end: tokens at the end of the last period.
    """
    count, depth, heads = values.shape
    if len(times) != count or depth != len(layers) or not count:
        raise ValueError(f"{len(times)} times and {len(layers)} layers do not fit budgets of shape {values.shape}")
    edges = np.array([*times, max(end, times[-1] + 1)])
    with drawn(path, 1, 1, (8, max(3.0, 0.055 * depth * heads + 1.2))) as (figure, axes):
        axis = axes[0][0]
        mesh = axis.pcolormesh(
            edges, np.arange(depth * heads + 1), values.reshape(count, -1).T, cmap="viridis", rasterized=True
        )
        for boundary in range(heads, depth * heads, heads):
            axis.axhline(boundary, color="white", linewidth=0.6)
        step = max(1, depth // 15)
        axis.set_yticks(
            [(i + 0.5) * heads for i in range(0, depth, step)], [str(layers[i]) for i in range(0, depth, step)]
        )
        axis.invert_yaxis()
        axis.set(title=title, xlabel="tokens of the sequence", ylabel=f"layer ({heads} KV heads each)")
        figure.colorbar(mesh, ax=axis, label="budget of a KV head (slots)")
    return figure
