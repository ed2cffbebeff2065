"""Statistics that TriAttention's authors published, as a calibration."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.calibrate import calibration_of
from reasonalloc.hf.compat import budgeted_layers, unwrapped
from reasonalloc.hf.rotation import find_rotations
from reasonalloc.policy.calibration import Calibration, LayerCalibration
from reasonalloc.protocols import Model

_NAMES = ("q_mean_real", "q_mean_imag", "q_abs_mean")


def import_triattention(model: Model, path: str | Path) -> Calibration:
    """The calibration that a `.pt` file of WeianMao/triattention (c3744ee6) holds: the queries alone.

    The file says neither of which model it is nor its RoPE: both are taken from `model`, which must be the one that it
    was measured on; only the numbers of layers, heads and dimensions can be checked. Nothing in it is executed. Their
    calibrate.py leaves out the norm of the queries that some models have (Qwen 3) and so is wrong there; files that it
    made for such models are taken as they are.
    Raises ValueError for another file, a model of another shape, or one that does not rotate whole heads in half style.
    """
    model = unwrapped(model)
    shape, managed = fingerprint(model), budgeted_layers(model)
    metadata, stats = _read(path)
    size = metadata.get("head_dim")
    if size != shape["head_dim"]:
        raise ValueError(f"{path} is for heads of size {size!r}, the model's are of {shape['head_dim']!r}")
    if metadata.get("rope_style") != "half":
        raise ValueError(f"{path} has pairs in the style {metadata.get('rope_style')!r}, supported is 'half'")
    layers = {}
    for index, rotation in find_rotations(model, managed).items():
        if rotation.interleaved or 2 * rotation.pairs != size:
            raise ValueError(f"layer {index} of {type(model).__name__} does not rotate whole heads in half style")
        mean, length = _layer(path, stats, index, int(shape["query_heads"]), rotation.pairs)
        # theirs are without YaRN's factor, ours with it
        layers[index] = LayerCalibration(
            rotation.frequency, False, rotation.scaling, mean * rotation.scaling, length * rotation.scaling
        )
    source: dict[str, object] = {"file": Path(path).name, "format": "triattention", "metadata": _plain(metadata)}
    return calibration_of(model, layers, source)


def _read(path: str | Path) -> tuple[Mapping[str, object], Mapping[str, object]]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is no file of tensors and plain values: {why}") from error
    metadata, stats = (data.get(x) if isinstance(data, dict) else None for x in ("metadata", "stats"))
    if not isinstance(metadata, dict) or not isinstance(stats, dict):
        raise ValueError(f"{path} has no TriAttention statistics: it needs the entries 'metadata' and 'stats'")
    return metadata, stats


def _layer(
    path: str | Path, stats: Mapping[str, object], index: int, heads: int, pairs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    means, lengths = [], []
    for head in range(heads):
        name = f"layer{index:02d}_head{head:02d}"
        entry = stats.get(name)
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(x), torch.Tensor) and tuple(entry[x].shape) == (pairs,) for x in _NAMES
        ):
            raise ValueError(f"{path}: {name} must have {', '.join(_NAMES)} of [{pairs}]; the model has {heads} heads")
        real, imaginary, length = (entry[x].float() for x in _NAMES)
        means.append(torch.cat([real, imaginary]))
        lengths.append(length)
    return torch.stack(means), torch.stack(lengths)


def _plain(metadata: Mapping[str, object]) -> dict[str, object]:
    return {k: v for k, v in metadata.items() if isinstance(v, (str, int, float, bool))}
