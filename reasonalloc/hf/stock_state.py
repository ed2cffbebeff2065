"""The state of transformers' own cache layers, taken apart and put back."""

from __future__ import annotations

import torch
from transformers.cache_utils import CacheLayerMixin

from reasonalloc.fingerprint import dtype_name
from reasonalloc.hf.saved_file import Arrays, Stock

_KINDS = ("DummyLayer", "DynamicLayer", "DynamicSlidingWindowLayer", "LinearAttentionLayer")
_FIXED = ("sliding_window", "number_of_states")  # of the model, not of what it has read
_PLAIN = (bool, int, float, str, type(None))
_TENSOR, _DTYPE = "tensor", "dtype"


def take_apart(index: int, layer: CacheLayerMixin) -> tuple[Stock, Arrays]:
    """A layer's state, with the tensors in host memory; ValueError for a kind whose state is not known."""
    kind = type(layer).__name__
    if kind not in _KINDS:
        raise ValueError(
            f"layer {index} keeps transformers' {kind}, whose state cannot be saved; those that can are"
            f" {', '.join(_KINDS)}"
        )
    arrays: Arrays = {}
    state: dict[str, object] = {}
    for name, value in vars(layer).items():
        if name == "device":  # the model's, wherever it lies by then
            continue
        if isinstance(value, dict):  # a state for each of several
            state[name] = {str(k): _encoded(f"stock.{index}.{name}.{k}", x, arrays) for k, x in value.items()}
        else:
            state[name] = _encoded(f"stock.{index}.{name}", value, arrays)
    return Stock(index, kind, state), arrays


def _encoded(name: str, value: object, arrays: Arrays) -> object:
    if isinstance(value, torch.Tensor):
        arrays[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, torch.dtype):
        return {_DTYPE: dtype_name(value)}
    if isinstance(value, _PLAIN):
        return value
    raise ValueError(f"{name} holds a {type(value).__name__}, which cannot be saved")


def put_back(saved: Stock, layer: CacheLayerMixin, arrays: Arrays, rows: int, device: torch.device) -> None:
    """Fills a fresh layer. Raises ValueError, naming what does not fit."""
    if type(layer).__name__ != saved.kind:
        raise ValueError(f"layer {saved.index} was a {saved.kind}, here it is a {type(layer).__name__}")
    attributes = {**vars(layer), "dtype": None, "device": None}
    unknown, missing = set(saved.state) - set(attributes), set(vars(layer)) - set(saved.state) - {"device"}
    if unknown or missing:
        raise ValueError(
            f"layer {saved.index} ({saved.kind}) was saved with other attributes than it has here:"
            f" {', '.join(sorted(unknown | missing))} (another version of transformers?)"
        )
    state: dict[str, object] = {
        name: (
            {int(k): _decoded(x, arrays, rows, device) for k, x in value.items()}
            if isinstance(attributes[name], dict) and isinstance(value, dict)
            else _decoded(value, arrays, rows, device)
        )
        for name, value in saved.state.items()
    }
    for name in _FIXED:
        if name in attributes and state.get(name) != attributes[name]:
            raise ValueError(f"layer {saved.index}: {name} was {state.get(name)!r}, here it is {attributes[name]!r}")
    for name, value in attributes.items():
        kept = state.get(name)
        if isinstance(value, dict) and (not isinstance(kept, dict) or set(kept) != set(value)):
            raise ValueError(f"layer {saved.index}: {name} must be of {sorted(value)}, got {kept!r:.100}")
        if isinstance(value, (bool, int)) and type(kept) is not type(value):
            raise ValueError(f"layer {saved.index}: {name} must be a {type(value).__name__}, got {kept!r:.100}")
    if any(state.get(name) is not None for name in ("keys", "values")):
        keys, values = state["keys"], state["values"]
        if not (isinstance(keys, torch.Tensor) and isinstance(values, torch.Tensor)) or (
            keys.ndim != 4 or keys.shape[:3] != values.shape[:3]
        ):
            raise ValueError(f"layer {saved.index}: keys and values do not belong together")
    if state.get("dtype") is not None:
        state["device"] = device
    vars(layer).update(state)


def _decoded(value: object, arrays: Arrays, rows: int, device: torch.device) -> object:
    if not isinstance(value, dict):
        return value
    if set(value) == {_TENSOR} and value[_TENSOR] in arrays:
        x = arrays[value[_TENSOR]]
        if x.ndim > 1 and x.shape[0] != rows:
            raise ValueError(f"array {value[_TENSOR]} must be of {rows} rows, got {list(x.shape)}")
        return x.to(device)
    name = value.get(_DTYPE)
    if set(value) == {_DTYPE} and isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    raise ValueError(f"{value!r:.100} is neither a tensor nor a dtype")
