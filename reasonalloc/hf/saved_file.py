"""The file of a saved cache: safetensors with a header, every array checked against it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from reasonalloc.fields import build
from reasonalloc.files import Json, parse_json, replace_bytes
from reasonalloc.fingerprint import dtype_name

SCHEMA = 1
FORMAT = "reasonalloc-cache"

Arrays = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SavedModel:
    """What tells a model from others. shape: as in a wave profile. weights: `weights_digest`. label: what it is called,
    for messages only."""

    shape: Json
    weights: str | None
    dtype: str
    label: str


@dataclass(frozen=True)
class Figures:
    """What `stats()` counts up, but for seconds, which begin anew."""

    routings: int
    byte_sum: int
    evicted: int
    lost: float
    lost_count: int
    recalls: int = 0


@dataclass(frozen=True)
class Layer:
    """A layer with a budget. index: in the model. scale, softcap: of the logits in its newest step."""

    index: int
    heads: int
    query_heads: int
    head_dim: int
    scale: float
    softcap: float


@dataclass(frozen=True)
class Stock:
    """A layer that keeps transformers' own cache. state: its attributes that are no tensors; of those that are, where
    to find them among the arrays."""

    index: int
    kind: str
    state: Json


@dataclass(frozen=True)
class Header:
    """All of a saved cache that is no array.

    config: as `ra.Config` takes it. rows: of the batch, 0 if the cache is empty; length: tokens given, padding
    included. dtype: of keys and values. fixed: slots of a KV head that do not depend on the row. record: the cuts are
    among the arrays. step: a `StepState`.
    """

    model: SavedModel
    config: dict[str, Any]  # keywords, each of its own type
    rows: int
    length: int
    dtype: str
    fixed: int | None
    record: bool
    step: Json
    figures: Figures
    layers: tuple[Layer, ...]
    stock: tuple[Stock, ...]
    provenance: Json


def write(path: str | Path, header: Header, arrays: Arrays) -> None:
    """Writes a cache, whole or not at all."""
    kinds = {name: [dtype_name(x.dtype), list(x.shape), _checksum(x)] for name, x in arrays.items()}
    metadata = {"format": FORMAT, "schema": str(SCHEMA), "header": json.dumps(asdict(header))}
    replace_bytes(path, save(arrays, {**metadata, "arrays": json.dumps(kinds)}))


def read(path: str | Path) -> tuple[Header, Arrays]:
    """A saved cache; ValueError if the file is none, of another schema or damaged, OSError if it cannot be read."""
    with open(path, "rb"):  # OSError says more than what safetensors makes of it
        pass
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a saved cache: no safetensors file, {error}") from error
    try:
        header = build(Header, parse_json(metadata.get("header", ""), "its header"), "its header")
        kinds = parse_json(metadata.get("arrays", ""), "its list of arrays")
        _check_arrays(kinds, arrays)
    except ValueError as error:
        raise ValueError(f"{path} is not a saved cache of schema {SCHEMA}: {error}") from error
    return header, arrays


def _check_format(path: str | Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a saved cache: its format is {metadata.get('format')!r}, a saved cache's is {FORMAT!r}"
        )
    if metadata.get("schema") != str(SCHEMA):
        raise ValueError(
            f"{path} is a saved cache of schema {metadata.get('schema')!r}, this version reads schema {SCHEMA}"
        )


def _check_arrays(kinds: object, arrays: Arrays) -> None:
    if not isinstance(kinds, dict) or set(kinds) != set(arrays):
        raise ValueError(f"its arrays are {', '.join(sorted(arrays))}, its list says {kinds!r:.200}")
    for name, x in arrays.items():
        found = [dtype_name(x.dtype), list(x.shape), _checksum(x)]
        if kinds[name] != found:
            raise ValueError(
                f"array {name} is damaged: it is {found} (dtype, shape, checksum), saved was {kinds[name]}"
            )


def _checksum(x: torch.Tensor) -> int:
    if not x.numel():
        return 0
    return zlib.crc32(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def take(arrays: Arrays, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """An array of a saved cache; ValueError if it is missing, or of another kind than what the rest says."""
    if name not in arrays:
        raise ValueError(f"it has no array {name}")
    x = arrays[name]
    if x.dtype != dtype or tuple(x.shape) != shape:
        raise ValueError(
            f"array {name} must be {dtype_name(dtype)} {list(shape)}, got {dtype_name(x.dtype)} {list(x.shape)}"
        )
    return x
