"""A calibration: what was measured of a model's queries, keys and values, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from reasonalloc.fields import build
from reasonalloc.files import Json, parse_json, replace_bytes
from reasonalloc.fingerprint import differences, dtype_name, fingerprint, weights_digest
from reasonalloc.hub import Shared
from reasonalloc.policy.wave import WaveProfile
from reasonalloc.protocols import Model

if TYPE_CHECKING:
    import torch

SCHEMA = 1
FORMAT = "reasonalloc-calibration"
QUANTILES = (0.005, 0.995)  # KVQuant's (arXiv 2401.18079) for 1 % of outliers

PARTS = ("queries", "moments", "ranges", "fisher", "wave", "heads")
CHEAP = ("queries", "moments", "ranges")
# What systems need of it, by the names of their papers; not each is a method here.
SYSTEMS = {
    "triattention": ("queries",),
    "kvquant": ("ranges", "fisher"),
    "palu": ("moments", "fisher"),
    "reasonalloc": ("wave",),
}


def parts_of(for_: str | Sequence[str]) -> tuple[str, ...]:
    """The parts that these systems need, or those named; ValueError for an unknown name."""
    names = [for_] if isinstance(for_, str) else list(for_)
    found: set[str] = set()
    for name in names:
        if name not in PARTS and name not in SYSTEMS:
            raise ValueError(f"for_ takes systems ({', '.join(SYSTEMS)}) and parts ({', '.join(PARTS)}), got {name!r}")
        found |= {name} if name in PARTS else set(SYSTEMS[name])
    if not found:
        raise ValueError("for_ names nothing to measure")
    return tuple(x for x in PARTS if x in found)


@dataclass(frozen=True, eq=False)
class LayerCalibration:
    """What was measured of one layer; None: that was not asked for.

    Queries and keys are as attention takes them (after any norm, with the scaling of their rotary embedding), turned
    back to position 0: of a token at position p, pair f was turned by -p x frequency[f]. Pair f of a head is its
    dimensions f and f + pairs, interleaved: 2 f and 2 f + 1; dimensions from 2 x pairs on are not rotated.

    frequency: float64 [pairs], radians a position. scaling: the factor that the embedding put on the pairs.
    query_mean: float32 [Hq, D]; query_length: [Hq, pairs], mean length of each pair.
    key_moment: [H, D, D], mean of k k'; value_moment: [H, Dv, Dv].
    key_range: [2, H, D], the `QUANTILES` of each channel without the first token of a text; value_range: [2, H, Dv].
    key_fisher: [H, D], mean squared gradient of the loss (nats a token); value_fisher: [H, Dv].
    head_share: [H], shares of the layer's slots that `heads="profile"` gives its heads, mean 1.
    """

    frequency: torch.Tensor
    interleaved: bool = False
    scaling: float = 1.0
    query_mean: torch.Tensor | None = None
    query_length: torch.Tensor | None = None
    key_moment: torch.Tensor | None = None
    value_moment: torch.Tensor | None = None
    key_range: torch.Tensor | None = None
    value_range: torch.Tensor | None = None
    key_fisher: torch.Tensor | None = None
    value_fisher: torch.Tensor | None = None
    head_share: torch.Tensor | None = None

    @property
    def arrays(self) -> dict[str, torch.Tensor]:
        """Those that are there, by name."""
        every = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("interleaved", "scaling")}
        return {name: x for name, x in every.items() if x is not None}

    def check(self, index: int, shape: Json) -> None:
        """ValueError for arrays that are not finite or not of a model of this `fingerprint`."""
        import torch

        d, pairs = shape["head_dim"], len(self.frequency)
        hq, h = shape["query_heads"], shape["kv_heads"]
        dims = {"queries": hq, "keys": h, "values": h}
        wanted = {
            "query_mean": (hq, d), "query_length": (hq, pairs), "key_moment": (h, d, d), "key_range": (2, h, d),
            "key_fisher": (h, d), "head_share": (h,),
        }  # fmt: skip
        if self.frequency.dtype != torch.float64 or self.frequency.ndim != 1 or not math.isfinite(self.scaling):
            raise ValueError(f"layer {index} has frequencies {self.frequency.dtype} {list(self.frequency.shape)}")
        if (self.query_mean is None) != (self.query_length is None):
            raise ValueError(f"layer {index} has only one of query_mean and query_length")
        for name, x in self.arrays.items():
            fits = name not in wanted or list in map(type, dims.values()) or tuple(x.shape) == wanted[name]
            if not fits or (name != "frequency" and x.dtype != torch.float32):
                raise ValueError(
                    f"layer {index}: {name} must be float32 {list(wanted.get(name, ()))}, got {x.dtype} {list(x.shape)}"
                )
            if not torch.isfinite(x).all():
                raise ValueError(f"layer {index}: {name} holds NaN or infinity")
            if name in ("query_length", "key_fisher", "value_fisher", "head_share") and (x < 0).any():
                raise ValueError(f"layer {index}: {name} holds numbers below 0")
            if name == "head_share" and not x.any():
                raise ValueError(f"layer {index}: its head shares are all 0")


@dataclass(frozen=True, eq=False)
class Calibration(Shared):
    """Statistics of the layers of a model that have a budget, with where they come from. Equal if all is equal.

    model: its `fingerprint`. weights: a digest of a sample of its weights, None where they were not in memory. dtype:
    of its weights. rope: the parameters of its rotary embedding. layers: by their numbers in the model. wave: the layer
    wave, where it was measured too. source: of which texts and by which versions.
    """

    model: Json
    layers: Mapping[int, LayerCalibration]
    rope: Json = field(default_factory=dict)
    weights: str | None = None
    dtype: str = "float32"
    wave: WaveProfile | None = None
    source: Json = field(default_factory=dict)
    path: str | None = None

    FILE: ClassVar[str] = "calibration.safetensors"

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(self.layers) or min(self.layers) < 0:
            raise ValueError(f"a calibration has layers in ascending order, got {list(self.layers)}")
        for i, layer in self.layers.items():
            layer.check(i, self.model)
        shares = [x.head_share is not None for x in self.layers.values()]
        if any(shares) and not all(shares):
            raise ValueError("a calibration has head shares of all layers or of none")
        if self.wave is not None and self.wave.layers != tuple(self.layers):
            raise ValueError(f"its wave is of the layers {self.wave.layers}, it is of {list(self.layers)}")

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of all that it says."""
        digest = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for name, x in self._arrays().items():
            digest.update(name.encode() + x.numpy().tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Calibration({self.source.get('model', '?')}, layers={len(self.layers)}, holds={', '.join(self.holds)})"

    @property
    def holds(self) -> tuple[str, ...]:
        """Which of queries, moments, ranges, fisher, wave and heads are there."""
        first = next(iter(self.layers.values()))
        there = {
            "queries": first.query_mean, "moments": first.key_moment, "ranges": first.key_range,
            "fisher": first.key_fisher, "wave": self.wave, "heads": first.head_share,
        }  # fmt: skip
        return tuple(name for name, x in there.items() if x is not None)

    def check(self, model: Model, layers: Sequence[int]) -> None:
        """Raises ValueError if it was measured on another model: another shape, other weights or another rotation."""
        wrong = differences(self.model, fingerprint(model))
        if tuple(layers) != tuple(self.layers):
            wrong.append(f"layers {list(self.layers)} (here {list(layers)})")
        if not wrong and self.rope != (rope := rope_parameters(model)):
            wrong.append(f"rotary embedding {dict(self.rope)} (here {rope})")
        dtypes = {self.dtype, dtype_name(model.dtype)}
        # The digest is of numbers rounded to bfloat16, which float16 has rounded already.
        if not wrong and self.weights is not None and (len(dtypes) == 1 or "float16" not in dtypes):
            here = weights_digest(model, rounded=True)
            if here is not None and here != self.weights:
                made, now = self.dtype, dtype_name(model.dtype)
                merged = f" (made in {made}, here in {now}: an adapter merged in another dtype gives other weights)"
                wrong.append("other weights of the same shape" + (merged if made != now else ""))
        if wrong:
            raise ValueError(f"the calibration is of another model, {self.source.get('model')!r}: {', '.join(wrong)}")

    # ---- the file ----

    def _header(self) -> Json:
        return {
            "model": dict(self.model),
            "layers": [[i, x.interleaved, x.scaling] for i, x in self.layers.items()],
            "rope": dict(self.rope),
            "weights": self.weights,
            "dtype": self.dtype,
            "wave": None if self.wave is None else asdict(self.wave),
            "source": dict(self.source),
        }

    def _arrays(self) -> dict[str, torch.Tensor]:
        return {f"layer.{i}.{name}": x for i, layer in self.layers.items() for name, x in layer.arrays.items()}

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all, in a folder that is made if it is missing."""
        from safetensors.torch import save

        arrays = {name: x.contiguous().clone() for name, x in self._arrays().items()}
        metadata = {"format": FORMAT, "schema": str(SCHEMA), "header": json.dumps(self._header())}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, save(arrays, {**metadata, "digest": self.digest}))
        object.__setattr__(self, "path", str(path))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Reads a saved calibration; ValueError if the file is none, of another schema or damaged."""
        from safetensors import SafetensorError, safe_open

        with open(path, "rb"):  # OSError says more than what safetensors makes of it
            pass
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if (metadata.get("format"), metadata.get("schema")) != (FORMAT, str(SCHEMA)):
                    raise ValueError(
                        f"{path} is not a calibration of schema {SCHEMA}: its format is {metadata.get('format')!r},"
                        f" schema {metadata.get('schema')!r}"
                    )
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a calibration: no safetensors file, {error}") from error
        try:
            found = cls(**_fields(parse_json(metadata.get("header", ""), "its header"), arrays), path=str(path))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a calibration of schema {SCHEMA}: {error}") from error
        if found.digest != metadata.get("digest"):
            raise ValueError(f"{path} is damaged: its digest is {found.digest}, saved was {metadata.get('digest')!r}")
        return found


@dataclass(frozen=True)
class _Header:
    model: Json
    layers: tuple[tuple[int, bool, float], ...]
    rope: Json
    weights: str | None
    dtype: str
    wave: Json | None
    source: Json


def _fields(data: object, arrays: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    header = build(_Header, data, "its header")
    names = {f.name for f in fields(LayerCalibration)}
    by_layer: dict[int, dict[str, torch.Tensor]] = {i: {} for i, *_ in header.layers}
    for name, x in arrays.items():
        _, index, what = ["", "", "", *name.split(".", 2)][-3:]
        if not index.isdecimal() or int(index) not in by_layer or what not in names:
            raise ValueError(f"its array {name} belongs to nothing")
        by_layer[int(index)][what] = x
    for i in by_layer:
        if "frequency" not in by_layer[i]:
            raise ValueError(f"layer {i} has no frequencies")
    return {
        "model": header.model,
        "layers": {
            i: LayerCalibration(interleaved=interleaved, scaling=scaling, **by_layer[i])
            for i, interleaved, scaling in header.layers
        },
        "rope": header.rope,
        "weights": header.weights,
        "dtype": header.dtype,
        "wave": None if header.wave is None else build(WaveProfile, header.wave, "its wave"),
        "source": header.source,
    }


def rope_parameters(model: Model) -> Json:
    """What a model's config says of its rotary embedding, as JSON holds it."""
    config = model.config.get_text_config(decoder=True)
    found = getattr(config, "rope_parameters", None) or {}
    parsed: Json = json.loads(json.dumps(dict(found), default=str, sort_keys=True))
    return parsed
