"""Builds the page: template, style, scripts and data in one file that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from reasonalloc.files import Json
from reasonalloc.trace.compact import narrowest
from reasonalloc.trace.file import QUANTILES, Trace
from reasonalloc.trace.report.summary import summary

# In the order in which they need each other.
SCRIPTS = ("data", "colors", "plot", "tooltip", "text", "budgets", "retention", "scores", "compare", "main")
MOST_TRACES = 8
_SERIES_BYTES = 700_000  # of score quantiles: a method that cuts at every token has thousands of cuts


def page(traces: Sequence[Trace], names: Sequence[str]) -> str:
    """HTML that shows traces: the first two are compared at the beginning, others can be chosen.

    names: what the page calls them. What is drawn is exact but for budgets, lost mass and scores of a trace with very
    many cuts, of which only every so many are shown; the page says so. Raises ValueError for no or more than 8 traces.
    """
    if not 1 <= len(traces) <= MOST_TRACES or len(names) != len(traces):
        raise ValueError(f"a report takes 1 to {MOST_TRACES} traces and a name for each, got {len(traces)}")
    data = {
        "quantiles": list(QUANTILES),
        "traces": [_trace(trace, name) for trace, name in zip(traces, names, strict=True)],
    }
    folder = files(__package__)
    parts = {
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS),
        # "<" could end the element that holds the data
        "DATA": json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    html = (folder / "page.html").read_text(encoding="utf-8")
    for key, part in parts.items():  # the data, which may hold anything, comes last
        html = html.replace(f"/*{key}*/", part)
    return html


def _trace(trace: Trace, name: str) -> Json:
    shown = _shown(trace)
    return {
        **summary(trace, name),
        "settings": trace.settings,
        "source": trace.source,
        "created": trace.provenance.get("created", ""),
        "window": trace.window,
        "interval": trace.interval,
        "layerNumbers": list(trace.layers),
        "ids": _coded(trace.ids.astype(np.int32)),
        "pieces": trace.pieces,
        "cuts": _coded(trace.cuts.astype(np.int32)),
        "gone": _coded(narrowest(trace.gone)),
        "shown": _coded(shown.astype(np.int32)),
        "budgets": _coded(trace.budgets[shown].astype(np.int32)),
        "lost": _coded(trace.lost[shown].astype(np.float32)),
        "quantiles": _coded(trace.quantiles[shown].astype(np.float32)),
    }


def _shown(trace: Trace) -> npt.NDArray[np.int64]:
    """Numbers of the cuts whose budgets, lost mass and scores are shown: all, unless that would be too much."""
    count = len(trace.cuts)
    most = max(32, _SERIES_BYTES // (4 * len(QUANTILES) * len(trace.layers) * trace.heads))
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def _coded(array: npt.NDArray) -> list[str]:
    """[type, base64 of the little-endian bytes]: what `decode` of data.js reads."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return [array.dtype.name, base64.b64encode(little.tobytes()).decode("ascii")]
