"""From a cache to what its file holds, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import CacheLayerMixin

from reasonalloc import _core
from reasonalloc.config import Config
from reasonalloc.fields import build
from reasonalloc.fingerprint import differences, dtype_name, fingerprint, weights_digest
from reasonalloc.hf import saved_file
from reasonalloc.hf.columns import Columns
from reasonalloc.hf.compat import unwrapped
from reasonalloc.hf.layer import RaggedLayer
from reasonalloc.hf.saved_file import Arrays, Figures, Header, Layer, SavedModel, take
from reasonalloc.hf.step import Step, StepState
from reasonalloc.hf.stock_state import put_back, take_apart
from reasonalloc.policy.cut import Cutter
from reasonalloc.policy.observers import CutObserver
from reasonalloc.policy.policy import Policy
from reasonalloc.policy.wave import WaveProfile
from reasonalloc.protocols import Model
from reasonalloc.provenance import provenance
from reasonalloc.store.pages import DTYPES, PagePool
from reasonalloc.trace.file import QUANTILES
from reasonalloc.trace.recorder import Recorder


class _Saved(Protocol):
    """A `ReasonAllocCache`: what of it goes into a file or is made anew."""

    model: Model
    config: Config
    policy: Policy
    record: bool
    by_hand: bool
    layers: list[CacheLayerMixin]
    ragged: list[RaggedLayer]
    step: Step
    rows: int
    routings: int
    byte_sum: int
    recorder: Recorder | None

    @property
    def cutter(self) -> Cutter: ...

    @property
    def whole_prompts(self) -> bool: ...

    def make_room(self, like: torch.Tensor) -> None: ...

    def pool_of(self, key: torch.Tensor) -> PagePool: ...


C = TypeVar("C", bound=_Saved)


def _identity(model: Model) -> SavedModel:
    label = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return SavedModel(fingerprint(model), weights_digest(model), dtype_name(model.dtype), label)


# ---- to the file ----


def save(cache: _Saved, path: str | Path) -> None:
    """`ReasonAllocCache.save`."""
    if cache.by_hand:
        raise ValueError(
            "the cache has a policy put together by hand, which no file can hold: save one made by a Config"
        )
    rows = cache.rows if cache.ragged[0].length else 0
    arrays: Arrays = {}
    stock = []
    for i, layer in enumerate(cache.layers):
        if not isinstance(layer, RaggedLayer) and rows:
            said, own = take_apart(i, layer)
            stock.append(said)
            arrays |= own
    for layer in cache.ragged if rows else ():
        arrays |= {f"layer.{layer.index}.{name}": x for name, x in _layer_arrays(layer, rows).items()}
    identity, fixed = _identity(cache.model), None
    figures = Figures(cache.routings, cache.byte_sum, 0, 0.0, 0)
    if rows:
        cutter = cache.cutter
        cutter.fetch()
        arrays |= {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in _cutter_arrays(cache, rows).items()}
        figures = Figures(
            cache.routings, cache.byte_sum, cutter.evicted, cutter.lost_sum, cutter.lost_count, cutter.recalls
        )
        fixed = cutter.budgets.fixed
    saved_file.write(
        path,
        Header(
            model=identity,
            config=_settings(cache.config),
            rows=rows,
            length=cache.ragged[0].length,
            dtype=dtype_name(cache.ragged[0].dtype) if rows else identity.dtype,
            fixed=fixed,
            record=cache.record,
            step=asdict(cache.step.state),
            figures=figures,
            layers=tuple(
                Layer(x.index, x.heads, x.query_heads, x.head_dim, x.core.scale, x.core.softcap)
                for x in (cache.ragged if rows else ())
            ),
            stock=tuple(stock),
            provenance=provenance(identity.label),
        ),
        arrays,
    )


def _layer_arrays(layer: RaggedLayer, rows: int) -> Arrays:
    """Heads one after the other, row by row: keys, values [S, D] in the cache's dtype, positions [S]; slots [B, H];
    queries: [Hq, n, D] of each row, flat, and counts [B] of each n; statistics: [fields, n] of each head, flat."""
    core, d = layer.core, layer.head_dim
    slots = np.zeros((rows, layer.heads), np.int64)
    core.slots(slots)
    positions = [np.frombuffer(core.positions(row, h), np.int32) for row in range(rows) for h in range(layer.heads)]
    states = {}
    for name, values in (("keys", False), ("values", True)):
        whole = torch.empty(int(slots.sum()), d, dtype=layer.dtype)
        begin = 0
        for row, head in np.ndindex(rows, layer.heads):
            count = int(slots[row, head])
            part = np.empty((count, d), np.float32)
            core.read(row, head, values, part)
            whole[begin : begin + count] = torch.from_numpy(part)  # exact: it was of this dtype
            begin += count
        states[name] = whole
    queries = [core.queries(row) for row in range(rows)]
    tensors = {
        **states,
        "positions": torch.from_numpy(np.concatenate(positions)),
        "slots": torch.from_numpy(slots),
        "queries": torch.from_numpy(np.concatenate([np.frombuffer(x, np.float32) for _, x in queries])),
        "counts": torch.tensor([count for count, _ in queries], dtype=torch.int64),
    }
    if layer.statistics is not None:
        columns = [core.columns(row, h)[1] for row in range(rows) for h in range(layer.heads)]
        tensors["statistics"] = torch.from_numpy(np.frombuffer(b"".join(columns), np.int32).copy())
    if layer.cold is not None:
        tensors |= _cold_arrays(layer, rows)
    if layer.sinks is not None:
        tensors["sinks"] = torch.as_tensor(layer.sinks).cpu().clone()
    return tensors


def _cold_arrays(layer: RaggedLayer, rows: int) -> Arrays:
    """cold.slots [B, H]; cold.positions and cold.records (uint8, as the core has them) of all heads, flat."""
    slots = np.zeros((rows, layer.heads), np.int64)
    layer.core.cold_slots(slots)
    heads = [layer.core.cold_read(row, head) for row, head in np.ndindex(rows, layer.heads)]
    positions, records = (b"".join(x) for x in zip(*heads, strict=True))
    return {
        "cold.slots": torch.from_numpy(slots),
        "cold.positions": torch.from_numpy(np.frombuffer(positions, np.int32).copy()),
        "cold.records": torch.from_numpy(np.frombuffer(records, np.uint8).copy()),
    }


def _cutter_arrays(cache: _Saved, rows: int) -> dict[str, npt.NDArray[Any]]:
    cutter = cache.cutter
    arrays = {
        "tokens": np.array([cache.ragged[0].core.tokens(row) for row in range(rows)], np.int64),
        "prompt": np.asarray(cutter.prompt, np.int64),
        "demand": cutter.budgets.demand,
        "measured": cutter.budgets.measured,
        "too_short": cutter.budgets.too_short,
        "budgets": cutter.budgets_now,
        "totals": cutter.totals_now,
    }
    if cache.step.columns.real is not None:
        arrays["columns"] = cache.step.columns.real
    if cutter.smoother is not None:
        arrays |= {f"smooth.{name}": x for name, x in cutter.smoother.arrays().items()}
    if cache.recorder is not None:
        arrays |= {f"record.{name}": x for name, x in cache.recorder.arrays(cutter.budgets.heads).items()}
    return arrays


def _settings(config: Config) -> dict[str, Any]:
    settings = config.file_settings()
    try:
        written: dict[str, Any] = json.loads(json.dumps(settings))
        same = _config(written) == config
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"the config has settings that JSON cannot hold, so that no file can: options={config.options!r}"
        )
    return written


def _config(settings: dict[str, Any]) -> Config:
    unknown = set(settings) - set(Config.__dataclass_fields__)
    if unknown:
        raise ValueError(f"its config has settings that are unknown: {', '.join(sorted(unknown))}")
    profile = settings.get("profile")
    if profile is not None:
        profile = build(WaveProfile, profile, "its wave profile")
    return Config(**{**settings, "profile": profile})


# ---- from the file ----


def load(cls: Callable[..., C], path: str | Path, model: Model, observers: Sequence[CutObserver]) -> C:
    """`ReasonAllocCache.load`."""
    header, arrays = saved_file.read(path)
    _check_model(path, header.model, unwrapped(model))
    try:
        config, step = _config(header.config), build(StepState, header.step, "its step")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a saved cache that can be read here: {error}") from error
    cache = cls(model, config, record=header.record, observers=observers)
    try:
        if header.rows or header.layers or header.stock or arrays:
            _fill(cache, header, arrays)
        _fill_step(cache, step, header, arrays)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a saved cache of this model: {error}") from error
    return cache


def _check_model(path: str | Path, saved: SavedModel, model: Model) -> None:
    here = _identity(model)
    wrong = differences(saved.shape, here.shape)
    if saved.dtype != here.dtype:
        wrong.append(f"dtype {saved.dtype} (here {here.dtype})")
    if not wrong and saved.weights != here.weights and None not in (saved.weights, here.weights):
        wrong.append("other weights of the same shape")
    if wrong:
        raise ValueError(
            f"{path} was saved with another model, {saved.label!r}: {', '.join(wrong)}; here is {here.label!r}"
        )


def _fill(cache: _Saved, header: Header, arrays: Arrays) -> None:
    rows, first = header.rows, header.layers[0] if header.layers else None
    if (
        first is None
        or rows < 1
        or header.length < 1
        or [x.index for x in header.layers] != [x.index for x in cache.ragged]
    ):
        raise ValueError(
            f"it has {rows} rows of {header.length} tokens in the layers {[x.index for x in header.layers]}, the"
            f" model's layers with a budget are {[x.index for x in cache.ragged]}"
        )
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    if header.dtype not in dtypes or any((x.heads, x.head_dim) != (first.heads, first.head_dim) for x in header.layers):
        raise ValueError(
            f"its keys are {header.dtype} of {[(x.heads, x.head_dim) for x in header.layers]} heads and sizes;"
            f" supported are {', '.join(dtypes)}, of one number and size"
        )
    if not (first.heads >= 1 and 1 <= first.head_dim <= _core.MAX_HEAD_DIM):
        raise ValueError(f"its layers have {first.heads} heads of size {first.head_dim}")
    like = torch.empty(rows, first.heads, 0, first.head_dim, dtype=dtypes[header.dtype])
    cache.make_room(like)
    tokens = take(arrays, "tokens", torch.int64, (rows,))
    if not 0 <= int(tokens.min()) <= int(tokens.max()) <= header.length:
        raise ValueError(f"its rows have {tokens.tolist()} tokens of {header.length}")
    for layer, saved in zip(cache.ragged, header.layers, strict=True):
        device = _device(cache.model, layer.index)
        _fill_layer(layer, saved, arrays, tokens.tolist(), cache.pool_of(like.to(device)), like.dtype)
        layer.length, layer.device = header.length, device
    own = {i: x for i, x in enumerate(cache.layers) if not isinstance(x, RaggedLayer)}
    if [x.index for x in header.stock] != list(own):
        raise ValueError(
            f"it has states of the layers {[x.index for x in header.stock]} without a budget, here {[*own]}"
        )
    for stock in header.stock:
        put_back(stock, own[stock.index], arrays, rows, _device(cache.model, stock.index))
    _fill_cutter(cache, header, arrays, tokens.numpy())


def _fill_layer(
    layer: RaggedLayer, saved: Layer, arrays: Arrays, tokens: list[int], pool: PagePool, dtype: torch.dtype
) -> None:
    name, rows, d = f"layer.{saved.index}.", len(tokens), saved.head_dim
    if saved.query_heads < 1 or saved.query_heads % saved.heads:
        raise ValueError(f"layer {saved.index} has {saved.query_heads} query heads for {saved.heads} KV heads")
    slots = take(arrays, name + "slots", torch.int64, (rows, saved.heads)).numpy()
    counts = take(arrays, name + "counts", torch.int64, (rows,)).tolist()
    if slots.min() < 0 or min(counts) < 0 or max(counts) > layer.window:
        raise ValueError(f"layer {saved.index} has {slots.tolist()} slots and {counts} queries (window {layer.window})")
    whole = int(slots.sum())
    keys, values = (take(arrays, name + x, dtype, (whole, d)) for x in ("keys", "values"))
    positions = take(arrays, name + "positions", torch.int32, (whole,)).numpy()
    queries = take(arrays, name + "queries", torch.float32, (sum(counts) * saved.query_heads * d,)).numpy()
    layer.lazy_initialization(keys, values)
    layer.start(pool, rows, saved.heads, saved.query_heads, d)
    if name + "sinks" in arrays:
        _set_sinks(layer, take(arrays, name + "sinks", torch.float32, (saved.query_heads,)), saved, pool)
    fields = layer.core.columns(0, 0)[0]
    columns = take(arrays, name + "statistics", torch.int32, (fields * whole,)).numpy() if fields else None
    begin, query_begin = 0, 0
    for row in range(rows):
        for head in range(saved.heads):
            end = begin + int(slots[row, head])
            part = (positions[begin:end], keys[begin:end].float().numpy(), values[begin:end].float().numpy())
            while missing := layer.core.restore(row, head, *part):
                pool.grow(missing)
            if columns is not None:
                layer.core.restore_columns(row, head, columns[fields * begin : fields * end])
            begin = end
        size = counts[row] * saved.query_heads * d
        layer.core.restore_row(
            row, tokens[row], counts[row], queries[query_begin : query_begin + size], saved.scale, saved.softcap
        )
        query_begin += size
    if layer.cold is not None:
        _fill_cold(layer, name + "cold.", arrays, rows)


def _fill_cold(layer: RaggedLayer, name: str, arrays: Arrays, rows: int) -> None:
    slots = take(arrays, name + "slots", torch.int64, (rows, layer.heads)).numpy()
    if slots.min() < 0:
        raise ValueError(f"layer {layer.index} has {slots.tolist()} cold tokens")
    whole = int(slots.sum())
    positions = take(arrays, name + "positions", torch.int32, (whole,)).numpy()
    size = arrays[name + "records"].numel() if name + "records" in arrays else 0
    records = take(arrays, name + "records", torch.uint8, (size,)).numpy()
    each, rest = divmod(size, whole) if whole else (0, size)
    if rest:
        raise ValueError(f"layer {layer.index} has {whole} cold tokens in {size} bytes")
    begin = 0
    for row, head in np.ndindex(rows, layer.heads):
        end = begin + int(slots[row, head])
        layer.core.cold_restore(row, head, positions[begin:end], records[each * begin : each * end])
        begin = end


def _set_sinks(layer: RaggedLayer, sinks: torch.Tensor, saved: Layer, pool: PagePool) -> None:
    """As a step would, for rows that are cut before the next one. The layer is empty before and after."""
    layer.sinks, core = pool.sinks(sinks), layer.core
    none = torch.zeros(core.rows, saved.query_heads, 1, saved.head_dim, device=pool.backend.device)
    states = (none, none[:, : saved.heads], none[:, : saved.heads])
    pool.step(core, *states, None, saved.scale, None, None, None, saved.softcap, layer.sinks, None)
    core.reset()


def _fill_cutter(cache: _Saved, header: Header, arrays: Arrays, tokens: npt.NDArray[np.int64]) -> None:
    cutter, rows = cache.cutter, header.rows
    budgets = cutter.budgets
    shape = (rows, budgets.layers)
    cutter.prompt = take(arrays, "prompt", torch.int64, (rows,)).numpy()
    budgets.demand = take(arrays, "demand", torch.float64, shape).numpy()
    cutter.budgets_now = take(arrays, "budgets", torch.int64, (*shape, budgets.heads)).numpy()
    cutter.totals_now = take(arrays, "totals", torch.int64, shape).numpy()
    if not (np.isfinite(budgets.demand).all() and (budgets.demand > 0).all()):
        raise ValueError(f"demands of layers are positive numbers, got {budgets.demand.tolist()}")
    if cutter.prompt.min() < 0 or (cutter.prompt > tokens).any():
        raise ValueError(f"its prompts have {cutter.prompt.tolist()} of {tokens.tolist()} tokens")
    if (header.fixed is None) != (budgets.fixed is None) or (header.fixed is not None and header.fixed < 1):
        raise ValueError(f"a head has {header.fixed} slots by its config, here {budgets.fixed}")
    budgets.fixed = header.fixed
    budgets.measured = take(arrays, "measured", torch.bool, (rows,)).numpy()
    budgets.too_short = take(arrays, "too_short", torch.bool, (rows,)).numpy()
    if not budgets.measured.all():  # rows without a token
        for layer in cache.ragged:
            layer.probes = [torch.zeros(layer.query_heads, 0, layer.head_dim)] * rows
    if cutter.smoother is not None:
        cutter.smoother.restore(_smooth(arrays, (*shape, budgets.heads)))
    if cache.recorder is not None:
        cache.recorder.restore(_record(arrays, (*shape, header.length + 1), budgets.heads))
    figures = header.figures
    cutter.evicted, cutter.lost_sum, cutter.lost_count = figures.evicted, figures.lost, figures.lost_count
    cutter.recalls = figures.recalls
    cache.routings, cache.byte_sum = figures.routings, figures.byte_sum


def _smooth(arrays: Arrays, below: tuple[int, int, int]) -> dict[str, npt.NDArray[Any]]:
    """As `Smoother.arrays`. below: each of a place's numbers is."""
    places = _places(arrays, "smooth.places", below)
    counts = take(arrays, "smooth.counts", torch.int64, (len(places),)).numpy()
    whole = _sum(counts, "smooth.counts")
    return {
        "places": places,
        "counts": counts,
        "positions": take(arrays, "smooth.positions", torch.int32, (whole,)).numpy(),
        "scores": take(arrays, "smooth.scores", torch.float32, (whole,)).numpy(),
    }


def _record(arrays: Arrays, below: tuple[int, int, int], heads: int) -> dict[str, npt.NDArray[Any]]:
    """As `Recorder.arrays`. below: each of a place's numbers is."""
    places = _places(arrays, "record.places", below)
    shape = (len(places), heads)
    counts = take(arrays, "record.counts", torch.int64, shape).numpy()
    gone = take(arrays, "record.gone", torch.int32, (_sum(counts, "record.counts"),)).numpy()
    if len(gone) and not 0 <= gone.min() <= gone.max() < below[2]:
        raise ValueError(f"array record.gone holds positions from 0 to {below[2] - 1}")
    return {
        "places": places,
        "counts": counts,
        "gone": gone,
        "budgets": take(arrays, "record.budgets", torch.int64, shape).numpy(),
        "lost": take(arrays, "record.lost", torch.float64, shape).numpy(),
        "quantiles": take(arrays, "record.quantiles", torch.float32, (*shape, len(QUANTILES))).numpy(),
    }


def _places(arrays: Arrays, name: str, below: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    count = len(arrays[name]) if name in arrays and arrays[name].ndim else 0
    places: npt.NDArray[np.int64] = take(arrays, name, torch.int64, (count, 3)).numpy()
    if count and (places.min() < 0 or (places >= below).any()):
        raise ValueError(f"array {name} holds numbers from 0 and below {below}")
    return places


def _sum(counts: npt.NDArray[np.int64], name: str) -> int:
    if counts.size and counts.min() < 0:
        raise ValueError(f"array {name} holds numbers from 0")
    return int(counts.sum())


def _fill_step(cache: _Saved, step: StepState, header: Header, arrays: Arrays) -> None:
    if step.uncut > header.length:
        raise ValueError(f"{step.uncut} of its {header.length} tokens came after the last cut")
    real = None
    if "columns" in arrays:
        real = take(arrays, "columns", torch.bool, (header.rows, header.length)).numpy()
    clocks = None
    if header.rows and not cache.policy.unlimited:
        clocks = cache.policy.schedule.clocks(header.rows, cache.whole_prompts)
    cache.step.restore(step, clocks, Columns(header.length, real))
    cache.step.rows = header.rows


def _device(model: Model, index: int) -> torch.device:
    """Where a layer of the model lies."""
    module = next((x for x in model.modules() if getattr(x, "layer_idx", None) == index), model)
    device = next((x.device for x in module.parameters() if not x.is_meta), None)
    return model.device if device is None else device
