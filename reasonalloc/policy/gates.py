"""Full heads beside local heads, distinguished by a gate for each KV head (DuoAttention, RLKV).

A full head keeps every token; a local one the first `sinks` tokens and the newest `recent`. Gates come from a file: a
line for each layer, a number for each of its KV heads, as both systems publish theirs (`full_attention_heads.tsv`,
`adapter_weights.tsv`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from reasonalloc.files import read_text, replace_text
from reasonalloc.policy.heads import CoreHeads, HeadAllocator, HeadArguments
from reasonalloc.policy.layers import LayerAllocator
from reasonalloc.policy.registry import Part
from reasonalloc.policy.schedule import Schedule
from reasonalloc.policy.setting import file_name, setting
from reasonalloc.policy.view import Numbers, RowView

Gates = npt.NDArray[np.float64]
_ANY = 1e300  # the published scripts take any sparsity: from 0 down no head is compressed, from 1 up all are


def read_gates(path: str | Path) -> Gates:
    """[L, H] of a file; ValueError, naming the line, for one that is no table of finite numbers."""
    rows: list[list[float]] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = [float(x) for x in line.split()]
        except ValueError as error:
            raise ValueError(f"{path}:{number}: gates are numbers, {error}") from None
        if not np.isfinite(row).all():
            raise ValueError(f"{path}:{number}: gates must be finite, got {line.strip()!r:.80}")
        if rows and len(row) != len(rows[0]):
            raise ValueError(f"{path}:{number}: has {len(row)} gates, the lines before have {len(rows[0])}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no gates")
    return np.array(rows)


def write_gates(path: str | Path, gates: npt.ArrayLike) -> str:
    """The text of [L, H] gates in the published form, which is what goes into `path`."""
    text = "".join("\t".join(f"{x:.18e}" for x in row) + "\n" for row in np.asarray(gates, dtype=np.float64))
    replace_text(path, text)
    return text


def local_heads(gates: npt.ArrayLike, sparsity: float) -> npt.NDArray[np.bool_]:
    """[L, H] which heads are local: the round(sparsity * L * H) with the lowest gates.

    Gates are clipped to [0, 1]. Of heads with the same gate the first ones, by (layer, head), stay full; the published
    codes add noise, `gate + uniform(0, 1e-6)`, and take a quantile, which is not the same twice.
    """
    clipped = np.clip(np.asarray(gates, dtype=np.float64), 0, 1)
    count = round(min(max(sparsity, 0.0), 1.0) * clipped.size)
    order = np.argsort(-clipped.ravel(), kind="stable")  # highest first, ties by index
    local = np.zeros(clipped.size, np.bool_)
    local[order[clipped.size - count :]] = True
    return local.reshape(clipped.shape)


@dataclass(frozen=True)
class ModelShape:
    """layers: of the model, in all. budgeted: numbers of those with a budget. heads: KV heads of each of these."""

    layers: int
    budgeted: tuple[int, ...]
    heads: int


def read_layers(path: str | Path, shape: ModelShape, what: str) -> Gates:
    """[layers with a budget, H] out of a file like that of gates, which has a line for each of these layers or for all.

    ValueError, which calls the numbers `what`, for those of another model.
    """
    table = read_gates(path)
    if table.shape == (shape.layers, shape.heads):
        table = table[list(shape.budgeted)]
    if table.shape != (len(shape.budgeted), shape.heads):
        some = len(shape.budgeted) < shape.layers
        or_those = f", of which {len(shape.budgeted)} have a budget (full attention)" if some else ""
        raise ValueError(
            f"{path} has {what} of {table.shape[0]} layers x {table.shape[1]} KV heads, the model has {shape.layers}"
            f" layers{or_those} x {shape.heads} KV heads"
        )
    return table


@lru_cache(maxsize=16)
def _limits(path: str, stamp: int, sparsity: float, local: int, shape: ModelShape) -> npt.NDArray[np.int64]:
    """[layers with a budget, H] slots of a head, -1 for a full one. stamp: when the file was written."""
    gates = read_layers(path, shape, "gates")
    limits = np.where(local_heads(gates, sparsity), local, -1).astype(np.int64)
    limits.flags.writeable = False
    return limits


P = TypeVar("P", bound="_Gated")


@dataclass(frozen=True)
class _Gated(Part):
    """gates: file of the gates. sparsity: share of heads that are local. sinks, recent: what a local head keeps.

    limits: [layers with a budget, H] slots of a head, -1 for a full one; None until `fitted` to a model.
    """

    gates: str = file_name()
    sparsity: float = setting(0.4, -_ANY, _ANY)
    sinks: int = setting(16, 0, 2**31 - 1, whole=True)
    recent: int = setting(64, 1, 2**31 - 1, whole=True)
    limits: npt.NDArray[np.int64] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def settings(self) -> tuple[str, float, int, int]:
        return self.gates, self.sparsity, self.sinks, self.recent

    def check_beside(self, layers: LayerAllocator, heads: HeadAllocator, schedule: Schedule) -> None:
        """ValueError where the parts of a policy do not go together."""
        if not (isinstance(layers, GateLayers) and isinstance(heads, GateHeads) and layers.settings == heads.settings):
            raise ValueError(
                f"full and local heads need both parts, layers and heads of method 'rlkv' or 'duo': {self}"
            )
        if not self.gates:
            raise ValueError(f"{self.title} needs the file 'gates': Config(options={{'gates': ...}})")
        if not Path(self.gates).is_file():
            raise ValueError(f"{self.title}: the file 'gates' does not exist: {self.gates}")
        if self.recent < schedule.window:
            raise ValueError(f"recent must be at least the window of {schedule.window} tokens, got {self.recent}")
        if self.sinks != schedule.sinks:
            raise ValueError(f"sinks is a keyword, Config(sinks=...), not an option; got {self.sinks}")

    def fitted(self: P, shape: ModelShape) -> P:
        """The same for a model; ValueError for gates of another one."""
        stamp = Path(self.gates).stat().st_mtime_ns
        twin = copy.copy(self)
        local = self.sinks + self.recent
        object.__setattr__(twin, "limits", _limits(str(self.gates), stamp, self.sparsity, local, shape))
        return twin


@dataclass(frozen=True)
class GateLayers(_Gated, LayerAllocator):
    """A layer's total: all tokens of its full heads and what its local heads keep."""

    kind: ClassVar[str] = LayerAllocator.kind
    sized: ClassVar[bool] = False
    sets_total = True

    def totals(self, claims: npt.NDArray[np.float64], total: int, view: RowView) -> Numbers:
        if self.limits is None:
            raise ValueError(f"{self.title} is not fitted to a model")
        full = (self.limits < 0).sum(1)
        totals: npt.NDArray[np.int64] = full * view.tokens + np.maximum(self.limits, 0).sum(1)
        return totals


@dataclass(frozen=True)
class GateHeads(_Gated, CoreHeads):
    """Heads with a limit get it, the others what is left."""

    kind: ClassVar[str] = CoreHeads.kind
    core: ClassVar[str] = "given"

    def arguments(self, order: int = 0) -> HeadArguments:
        if self.limits is None:
            raise ValueError(f"{self.title} is not fitted to a model")
        return HeadArguments(self.core, per_head=self.limits[order].tobytes())
