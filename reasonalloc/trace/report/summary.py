"""A trace in a few figures."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from reasonalloc.trace.file import Trace


class Summary(TypedDict):
    """JSON-ready. slots: at the end, over all heads; lost_mass: mean over heads and cuts with a loss."""

    name: str
    model: object
    method: object
    size: str
    tokens: int
    prompt: int
    layers: int
    heads: int
    cuts: int
    slots: int
    ratio: float
    evicted: int
    lost_mass: float


def size(trace: Trace) -> str:
    """What the cache was allowed, like "budget 128"."""
    for name in ("budget", "ratio", "max_bytes"):
        if trace.settings.get(name) is not None:
            return f"{name.replace('_', ' ')} {trace.settings[name]}"
    return "no limit"


def summary(trace: Trace, name: str) -> Summary:
    """The trace's figures; name: what they call it."""
    slots = int(trace.held().sum())
    full = trace.gone.size
    lost = trace.lost[np.nan_to_num(trace.lost) > 0]
    return {
        "name": name,
        "model": trace.source.get("model", ""),
        "method": trace.settings.get("method", ""),
        "size": size(trace),
        "tokens": len(trace.ids),
        "prompt": trace.prompt,
        "layers": len(trace.layers),
        "heads": trace.heads,
        "cuts": len(trace.cuts),
        "slots": slots,
        "ratio": slots / full if full else 1.0,
        "evicted": int((trace.gone > 0).sum()),
        "lost_mass": float(lost.mean()) if lost.size else 0.0,
    }
