"""How positions turn a model's queries and keys: found by running it, not by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from reasonalloc.hf.attention import using
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.watch import WatchedCache
from reasonalloc.protocols import Model

_POSITIONS = (0, 1, 5, 97, 1003)
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the largest number; 3e-2 for halves
_CHANGING = ("dynamic", "longrope")  # frequencies that depend on the length of the text


@dataclass(frozen=True, eq=False)
class Rotation:
    """RoPE (arXiv 2104.09864) of a layer: pair f turns by frequency[f] radians a position.

    frequency: float64 [pairs]. interleaved: pairs are the dimensions 2 f and 2 f + 1, else f and f + pairs; further
    dimensions are not turned. scaling: a factor on what is turned (YaRN's attention scaling).
    """

    frequency: torch.Tensor
    interleaved: bool = False
    scaling: float = 1.0

    @property
    def pairs(self) -> int:
        return len(self.frequency)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first and the second dimensions of the pairs, [..., pairs] each."""
        n = self.pairs
        if self.interleaved:
            return x[..., 0 : 2 * n : 2], x[..., 1 : 2 * n : 2]
        return x[..., :n], x[..., n : 2 * n]

    def turned(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Vectors [..., T, D] turned on by their positions [T]; by negative ones, back. float32 or float64."""
        angle = positions.double().cpu()[:, None] * self.frequency
        cos, sin = (f(angle).to(x.device, x.dtype) for f in (torch.cos, torch.sin))
        a, b = self.split(x)
        real, imaginary = a * cos - b * sin, a * sin + b * cos
        if self.interleaved:
            turned = torch.stack([real, imaginary], -1).flatten(-2)
        else:
            turned = torch.cat([real, imaginary], -1)
        return torch.cat([turned, x[..., 2 * self.pairs :]], -1)


def _candidates(model: Model, head_dim: int) -> Iterator[Rotation]:
    """The embeddings that the model has, in the styles that there are; the last one turns nothing."""
    seen: set[bytes] = set()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name or buffer.is_meta:
                continue
            frequency = buffer.detach().double().cpu().reshape(-1)
            scaling = getattr(module, f"{name.removesuffix('inv_freq')}attention_scaling", 1.0)
            key = frequency.numpy().tobytes()
            if key in seen or 2 * len(frequency) > head_dim:
                continue
            seen.add(key)
            for sign in (1, -1):
                for interleaved in (False, True):
                    yield Rotation(sign * frequency, interleaved, float(scaling))
    yield Rotation(torch.zeros(0, dtype=torch.float64))


def find_rotations(model: Model, layers: Sequence[int]) -> dict[int, Rotation]:
    """The rotation of each of these layers.

    A text of one token attends to itself alone, so that all its states are the same at every position, but for what
    its position does to queries and keys: those at several positions are compared with what each rotary embedding of
    the model would make of those at position 0. A layer without positions has a rotation of no pairs.

    Raises ValueError where none fits, naming the layer: positions do something else there, or to other dimensions
    (latent attention), or the frequencies depend on the length of the text.
    """
    config = model.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {str(x.get("rope_type")) for x in [rope, *rope.values()] if isinstance(x, dict)}
    if changing := kinds & set(_CHANGING):
        raise ValueError(
            f"{type(model).__name__} has a rotary embedding of the type {min(changing)!r}, whose frequencies depend on"
            " the length of the text: queries at one position have no mean"
        )
    states: dict[int, list[list[torch.Tensor]]] = {i: [] for i in layers}

    def look(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        if layer in states:
            states[layer].append([query[0, :, 0].float(), key[0, :, 0].float()])

    most = getattr(config, "max_position_embeddings", None) or max(_POSITIONS) + 1
    positions = [p for p in _POSITIONS if p < most]
    with using(model), torch.no_grad():
        for position in positions:
            ids = torch.tensor([[min(11, config.vocab_size - 1)]], device=model.device)
            at = torch.tensor([[position]], device=model.device)
            cache = WatchedCache(model, look)
            model(input_ids=ids, position_ids=at, **cache_argument(cache), use_cache=True)
    return {i: _fitting(model, i, torch.tensor(positions), seen) for i, seen in states.items()}


def _fitting(model: Model, layer: int, positions: torch.Tensor, seen: list[list[torch.Tensor]]) -> Rotation:
    if len(seen) != len(positions) or not seen[0][0].shape[-1] == seen[0][1].shape[-1]:
        raise ValueError(f"layer {layer} of {type(model).__name__}: its queries cannot be seen where RoPE is applied")
    tolerance = _TOLERANCE.get(model.dtype, 3e-2)
    both = [torch.stack(x, 1).cpu() for x in zip(*seen, strict=True)]  # queries and keys, [heads, positions, D]
    for rotation in _candidates(model, both[0].shape[-1]):
        errors = [
            float((rotation.turned(x[:, :1].expand_as(x), positions) - x).abs().max() / x.abs().max()) for x in both
        ]
        if max(errors) <= tolerance:
            return rotation
    raise ValueError(
        f"layer {layer} of {type(model).__name__}: positions change its queries and keys in another way than RoPE in"
        " half or interleaved style over the first dimensions of each head, so they cannot be turned back"
    )
