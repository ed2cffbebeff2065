"""The reasoning wave: how much attention each layer spreads; saved as a small JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reasonalloc import pictures
from reasonalloc.fields import build
from reasonalloc.files import Json, read_saved, replace_text
from reasonalloc.fingerprint import differences, fingerprint
from reasonalloc.hub import Shared
from reasonalloc.protocols import Model

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

SCHEMA = 1
PROBE_QUERIES = 64


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """[H, Hq / H, w, n] float32: the causal attention of the newest w tokens.

    queries: [Hq, w, d]; keys: [H, n, d]. scale: of the logits; softcap: they become softcap * tanh(logit / softcap).
    sinks: [Hq] logits of a token that has no value; what it takes of a softmax the n tokens do not have.
    """
    import torch  # late: a saved wave is read without it

    heads, n, d = keys.shape
    group, w = queries.shape[0] // heads, queries.shape[1]
    logits = torch.einsum("hgwd,hnd->hgwn", queries.float().view(heads, group, w, d), keys.float()) * scale
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    future = torch.arange(n, device=keys.device)[None, :] > torch.arange(n - w, n, device=keys.device)[:, None]
    logits = logits.masked_fill(future, float("-inf"))
    if sinks is not None:
        own = sinks.to(logits).view(heads, group, 1, 1).expand(-1, -1, w, -1)
        logits = torch.cat([logits, own], -1)
    return logits.softmax(-1)[..., :n]


def demand(
    queries: torch.Tensor,
    keys: torch.Tensor,
    rho: float = 0.93,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> float:
    """Number of tokens whose attention mass reaches rho: a layer's demand (ReasonAlloc, arXiv 2606.11164).

    queries: [Hq, w, d] of the newest w tokens; keys: [H, n, d]. The causal attention rows are averaged over queries and
    heads, sorted in descending order and summed up; with sinks, rho is of what these leave. scale: of the logits,
    1 / sqrt(d) by default; softcap, sinks: as of `attention`.
    """
    scale = keys.shape[-1] ** -0.5 if scale is None else scale
    row = attention(queries, keys, scale, softcap, sinks).mean((0, 1, 2))
    mass = row.sort(descending=True).values.double().cumsum(0)
    least = rho if sinks is None else rho * float(mass[-1])
    return float((mass < least).sum()) + 1


@dataclass(frozen=True)
class WaveProfile(Shared):
    """Demand of each layer that has a budget (sliding-window layers have none), with where it comes from."""

    FILE: ClassVar[str] = "wave.json"

    demand: tuple[float, ...]
    layers: tuple[int, ...]
    model: Json
    rho: float = 0.93
    source: Json = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if len(self.demand) != len(self.layers) or not self.demand:
            raise ValueError(f"a wave has one demand a layer, got {len(self.demand)} for {len(self.layers)} layers")
        if not all(isinstance(x, (int, float)) and 0 < x <= sys.float_info.max for x in self.demand):
            raise ValueError(f"demands must be positive numbers that a double can hold, got {self.demand!r:.200}")
        if not (self.layers[0] >= 0 and all(a < b for a, b in pairwise(self.layers))):
            raise ValueError(f"layers of a wave are numbers from 0 in ascending order, got {self.layers}")
        if not 0 < self.rho < 1:
            raise ValueError(f"rho must lie between 0 and 1, got {self.rho}")

    def check(self, model: Model, layers: Sequence[int]) -> None:
        """Raises ValueError if this profile was made for a model of another shape."""
        if wrong := differences(self.model, fingerprint(model)):
            raise ValueError(f"the wave profile is of another model: {', '.join(wrong)}")
        if tuple(layers) != self.layers:
            raise ValueError(f"the wave profile is for layers {list(self.layers)}, the model's are {list(layers)}")

    def plot(self, path: str | Path | None = None, *, name: str = "") -> Figure:
        """The demand of each layer as bars, a matplotlib figure; saved as PNG if there is a path.

        name: the model's, for the title (the profile's own by default). Needs matplotlib.
        """
        return pictures.wave(self.layers, self.demand, self.rho, path, name or str(self.source.get("model", "")))

    def save(self, path: str | Path) -> None:
        """Writes the profile as JSON, whole or not at all."""
        replace_text(Path(path), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> WaveProfile:
        """Reads a saved profile; ValueError if the file is none."""
        data = read_saved(path, "wave profile", SCHEMA)
        names = {"demand", "layers", "model", "rho", "source", "schema"}
        if set(data) != names:
            raise ValueError(f"{path}: a wave profile has the fields {sorted(names)}, got {sorted(data)}")
        try:
            return build(cls, data, "it")
        except ValueError as error:
            raise ValueError(f"{path} is not a wave profile: {error}") from error
