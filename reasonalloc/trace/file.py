"""A trace: what a cache did to one sequence, and the file that holds it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from reasonalloc import pictures
from reasonalloc.config import Config
from reasonalloc.fields import build
from reasonalloc.files import Json, encoded, parse_json, replace_bytes
from reasonalloc.fingerprint import differences, fingerprint
from reasonalloc.policy.wave import WaveProfile
from reasonalloc.protocols import Model
from reasonalloc.trace.compact import narrowest, pack, unpack, unpacked_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
FORMAT = "reasonalloc-trace"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float32]

_ARRAYS = ("ids", "cuts", "gone", "budgets", "lost", "quantiles", "ends")
_FLOATS = ("lost", "quantiles")
MOST_BYTES = 2 << 30  # of a trace's arrays in memory, unless a caller allows more


@dataclass(frozen=True, eq=False)
class Trace:
    """All cuts of one sequence: n tokens that the cache was given, C cuts, L layers with a budget, H KV heads of each.

    ids: [n] token ids. prompt: how many of them are the prompt. cuts: [C] tokens that the row had seen at each cut,
    ascending. gone: [L, H, n] the number of the cut (from 1) at which a head let a token go, 0 if it never did: a token
    goes once at most, so this is every head's slots at all times. budgets: [C, L, H] slots of a head from then on, -1
    in a layer that had nothing to cut. lost: [C, L, H] attention mass of the newest query on what went, 0 to 1;
    quantiles: [C, L, H, Q] those of `QUANTILES` of the scores of the tokens before the window, higher stays. Both are
    NaN where a layer was not cut, quantiles also where a head had no token before its window.

    layers: their numbers in the model. settings: the Config as JSON. model: the shape, as in a wave profile. source:
    model id, hashes of shape, tokenizer and settings, and what scored. text, ends: piece i is
    text[ends[i - 1]:ends[i]], ends [n]; text is None without a tokenizer, then ends is [0].

    The file is safetensors, its arrays deflated (`compact`). Measured with SmolLM2 (30 layers, 3 heads), 4,000 tokens
    of MATH-500 and budget 256, cut every 128 tokens: 176 KiB with ReasonAlloc, half of it `gone` and a third
    `quantiles`; 143 KiB with SnapKV. A trace made up after StreamingLLM's rule, with 3,744 cuts, takes 1.1 MiB.
    """

    ids: Ints
    prompt: int
    cuts: Ints
    gone: Ints
    budgets: Ints
    lost: Floats
    quantiles: Floats
    layers: tuple[int, ...]
    window: int
    interval: int
    settings: dict[str, Any]  # as Config takes them
    model: Json
    source: Json
    text: str | None = None
    ends: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    provenance: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, count, depth = len(self.ids), len(self.cuts), len(self.layers)
        heads = self.gone.shape[1] if self.gone.ndim == 3 else 0
        shapes = {
            "ids": (n,),
            "cuts": (count,),
            "gone": (depth, heads, n),
            "budgets": (count, depth, heads),
            "lost": (count, depth, heads),
            "quantiles": (count, depth, heads, len(QUANTILES)),
            "ends": (0,) if self.text is None else (n,),
        }
        if self.gone.ndim != 3 or min(self.window, self.interval) < 1:
            raise ValueError(
                f"a trace has a window and an interval of at least 1 and gone [L, H, n], got {self.window},"
                f" {self.interval} and {self.gone.shape}"
            )
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} of a trace must have shape {shape}, got {getattr(self, name).shape}")
            if (getattr(self, name).dtype.kind == "f") != (name in _FLOATS):
                raise ValueError(f"{name} of a trace holds {getattr(self, name).dtype}")
        if not all(a < b for a, b in pairwise((-1, *self.layers))):
            raise ValueError(f"layers of a trace are numbers from 0 in ascending order, got {self.layers}")
        if n and self.ids.min() < 0:
            raise ValueError(f"ids of a trace are token numbers from 0, got {int(self.ids.min())}")
        if not (depth and heads and 0 <= self.prompt <= n):
            raise ValueError(f"a trace has layers, heads and a prompt within its {n} tokens, got {self.prompt}")
        if count and not (self.cuts[0] > 0 and (np.diff(self.cuts.astype(np.int64)) > 0).all() and self.cuts[-1] <= n):
            raise ValueError(f"cuts of a trace must ascend within its {n} tokens, got {self.cuts.tolist()}")
        if self.gone.size and not (self.gone.min() >= 0 and self.gone.max() <= count):
            raise ValueError(f"gone of a trace must lie between 0 and its {count} cuts")
        cuts = self.cuts.astype(np.int64)
        for head in self.gone.reshape(depth * heads, n):  # one by one: a trace may be large
            left = np.flatnonzero(head)
            if (cuts[head[left].astype(np.int64) - 1] <= left).any():
                raise ValueError("a token of a trace goes before it comes")
        if count and self.budgets.min() < -1:
            raise ValueError(f"budgets of a trace are slots, or -1, got {int(self.budgets.min())}")
        if self.text is not None:
            encoded(self.text, "the text of a trace")
            if n and not self._ends_fit(self.text):
                raise ValueError("the pieces of a trace's text must follow each other and cover it")

    def _ends_fit(self, text: str) -> bool:
        ends = self.ends.astype(np.int64)
        return bool(ends[0] >= 0 and (np.diff(ends) >= 0).all() and ends[-1] == len(text))

    # ---- what it says ----

    @property
    def heads(self) -> int:
        """KV heads of a layer."""
        return int(self.gone.shape[1])

    @cached_property
    def pieces(self) -> list[str]:
        """[n] the text of each token; its id in angle brackets where the trace has no text."""
        if self.text is None:
            return [f"<{i}> " for i in self.ids.tolist()]
        begins = [0, *self.ends.tolist()]
        return [self.text[begins[i] : begins[i + 1]] for i in range(len(self.ids))]

    def held(self, tokens: int | None = None) -> npt.NDArray[np.bool_]:
        """[L, H, n] which tokens each head holds once `tokens` of them have been seen and cut; None: at the end."""
        tokens = len(self.ids) if tokens is None else tokens
        if not 0 <= tokens <= len(self.ids):
            raise ValueError(f"tokens must lie between 0 and the trace's {len(self.ids)}, got {tokens}")
        done = int(np.searchsorted(self.cuts, tokens, side="right"))
        held: npt.NDArray[np.bool_] = (self.gone == 0) | (self.gone > done)
        held[..., tokens:] = False
        return held

    def slots(self) -> npt.NDArray[np.int64]:
        """[C, L, H] slots that each head holds after each cut."""
        after = np.empty((len(self.cuts), len(self.layers), self.heads), np.int64)
        for head in np.ndindex(after.shape[1:]):
            went = np.bincount(self.gone[head], minlength=len(self.cuts) + 1)[1:].cumsum()
            after[(slice(None), *head)] = self.cuts - went
        return after

    def prompt_ids(self) -> torch.Tensor:
        """[prompt] token ids, int64."""
        return torch.from_numpy(self.ids[: self.prompt].astype(np.int64))

    def chain_ids(self) -> torch.Tensor:
        """[n - prompt] token ids of what followed, int64."""
        return torch.from_numpy(self.ids[self.prompt :].astype(np.int64))

    def config(self) -> Config:
        """The Config that the cache had; ValueError if its method is not registered here."""
        profile = self.settings.get("profile")
        if profile is not None:
            profile = WaveProfile(**{**profile, "demand": tuple(profile["demand"]), "layers": tuple(profile["layers"])})
        return Config(**{**self.settings, "profile": profile})

    def check(self, model: Model, layers: Sequence[int]) -> None:
        """Raises ValueError if this trace is of a model of another shape, or another vocabulary."""
        if wrong := differences(self.model, fingerprint(model)):
            raise ValueError(f"the trace is of another model: {', '.join(wrong)}")
        if tuple(layers) != self.layers:
            raise ValueError(f"the trace is of layers {list(self.layers)}, the model's are {list(layers)}")
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        if len(self.ids) and int(self.ids.max()) >= vocabulary:
            raise ValueError(f"the trace holds token {int(self.ids.max())}, the model has {vocabulary}")

    def plot(self, path: str | Path | None = None, *, title: str = "") -> Figure:
        """Budgets of every layer and head over the sequence, a matplotlib figure; saved as PNG if there is a path.

        Raises ValueError for a trace without a cut. Needs matplotlib.
        """
        if not len(self.cuts):
            raise ValueError(
                f"nothing was cut in the {len(self.ids)} tokens of this trace, so it has no budgets to draw"
            )
        values = np.ma.masked_less(self.budgets.astype(np.int64), 0)
        title = title or f"Budgets of {self.source.get('model', '')}".removesuffix(" of ")
        return pictures.budgets(self.cuts.tolist(), values, self.layers, path, title, len(self.ids))

    # ---- the file ----

    def save(self, path: str | Path) -> None:
        """Writes the trace, whole or not at all."""
        arrays = {name: self._stored(name) for name in _ARRAYS}
        header = {x.name: getattr(self, x.name) for x in fields(_Header) if x.name != "arrays"}
        header["arrays"] = {name: [x.dtype.name, list(x.shape)] for name, x in arrays.items()}
        metadata = {"format": FORMAT, "schema": str(SCHEMA), "header": json.dumps(header)}
        replace_bytes(path, save({name: pack(x) for name, x in arrays.items()}, metadata))

    def _stored(self, name: str) -> npt.NDArray:
        array: npt.NDArray = getattr(self, name)
        return array.astype(np.float32) if name in _FLOATS else narrowest(array)

    @classmethod
    def load(cls, path: str | Path, most_bytes: int = MOST_BYTES) -> Trace:
        """Reads a saved trace; ValueError if the file is none, or of another schema.

        most_bytes: what its arrays may take in memory. Arrays are deflated, so a small file may say large ones: what
        the header declares is checked before any of it is made.
        """
        with open(path, "rb"):  # OSError says more than what safetensors makes of it
            pass
        try:
            with safe_open(str(path), framework="numpy") as file:
                header = _header(path, file.metadata() or {})
                packed = {name: file.get_tensor(name) for name in _ARRAYS if name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a trace (schema {SCHEMA}): no safetensors file, {error}") from error
        if set(packed) != set(_ARRAYS) or set(header.arrays) != set(_ARRAYS):
            raise ValueError(f"{path}: a trace has the arrays {', '.join(_ARRAYS)}, got {', '.join(sorted(packed))}")
        try:
            size = sum(unpacked_bytes(*kind) for kind in header.arrays.values())
            if size > most_bytes:
                raise ValueError(f"its arrays would take {size:,} bytes, allowed are {most_bytes:,} (most_bytes)")
            contents: dict[str, Any] = {x.name: getattr(header, x.name) for x in fields(header) if x.name != "arrays"}
            contents |= {name: unpack(packed[name], *header.arrays[name]) for name in _ARRAYS}
            return cls(**contents)
        except ValueError as error:
            raise ValueError(f"{path} is not a trace of schema {SCHEMA}: {error}") from error


@dataclass(frozen=True)
class _Header:
    """The fields of a `Trace` that are no arrays, as the file has them. arrays: [dtype, shape] of each that is one."""

    prompt: int
    window: int
    interval: int
    layers: tuple[int, ...]
    settings: dict[str, Any]  # as Config takes them
    model: Json
    source: Json
    text: str | None
    provenance: Json
    arrays: dict[str, tuple[str, list[int]]]


def _header(path: str | Path, metadata: dict[str, str]) -> _Header:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a trace: its format is {metadata.get('format')!r}, a trace's is {FORMAT!r}")
    if metadata.get("schema") != str(SCHEMA):
        raise ValueError(f"{path} is a trace of schema {metadata.get('schema')!r}, this version reads schema {SCHEMA}")
    try:
        return build(_Header, parse_json(metadata.get("header", ""), "its text"), "it")
    except ValueError as error:
        raise ValueError(f"{path} is not a trace of schema {SCHEMA}: its header is damaged: {error}") from error
