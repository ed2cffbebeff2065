"""Scorers and a layer allocator in the form that papers or codes have, beside those that this library prefers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from reasonalloc import allocate
from reasonalloc.policy.layers import LAYERS, LayerAllocator
from reasonalloc.policy.scorers import SCORERS, CoreScorer, ScoreArguments
from reasonalloc.policy.setting import choice, setting
from reasonalloc.policy.view import Numbers, RowView

_MOST = 2**31 - 1


@SCORERS.enter("snapkv-published")
@dataclass(frozen=True)
class SnapKVPublished(CoreScorer):
    """SnapKV's (arXiv 2404.14469) as published: the window's causal softmax over all keys, one for each query head.

    "importance", R-KV's form, takes one softmax over the older tokens of the maximum over the group. pool: "avg" (the
    code's; at the ends too the sum is divided by the width) or "max" (the paper's ablation, Ada-KV, PyramidKV). width:
    tokens that are pooled; None: 5 for "avg", 7 for "max". The published window is 32.

    Two differences: the code sums over the queries, here it is their mean, which changes no order; it keeps tokens for
    each query head, on keys repeated for them, while here, as in Ada-KV, the mean over the group is pooled.
    """

    pool: str = choice("avg", "avg", "max")
    width: int | None = setting(None, 1, 4097, whole=True, odd=True)

    core: ClassVar[str] = "snapkv-published"

    def arguments(self, layer: int) -> ScoreArguments:
        average = self.pool == "avg"
        return ScoreArguments(self.core, kernel=self.width or (5 if average else 7), average=average)


MAX_POOLED = SnapKVPublished(pool="max")


@SCORERS.enter("vatp")
@dataclass(frozen=True)
class VATP(SnapKVPublished):
    """VATP's (arXiv 2406.12335): attention times the sum of |v|, the l1 norm of a token's value.

    The paper weights the attention of H2O (all queries) or of Scissorhands (the newest ones); here the window's, as of
    "snapkv-published", unpooled unless `width` says so. The first 20 tokens, whose values are short, stay: `sinks`.
    """

    core: ClassVar[str] = "vatp"

    def arguments(self, layer: int) -> ScoreArguments:
        return ScoreArguments(self.core, kernel=self.width or 1, average=self.pool == "avg")


@dataclass(frozen=True)
class _Drawn(CoreScorer):
    """By numbers that depend on (seed, layer, tokens of the row) and not on the batch."""

    seed: int = setting(0, 0, 2**63 - 1, whole=True)
    n_sink: int = setting(4, 0, _MOST, whole=True)


@SCORERS.enter("vase")
@dataclass(frozen=True)
class VaSE(_Drawn):
    """VaSE's (arXiv 2606.03928): tokens with the largest value range stay, the rest is sampled by its attention.

    A value's range is max(v) - min(v). The n_large largest stay, the first n_sink tokens among them; as many others as
    there is room for are drawn without replacement with probabilities in proportion to the attention of the window's
    queries: softmax over the older tokens for each query head, mean over queries and group, mean over `width` tokens.
    n_large: None: half the budget, and 200 for budgets above 512: 200 (1024 to 4096) and 256 (512) are the published
    ones. Ranges that agree to 12 bits are equal, and the newer token stays: in the first layer a token that comes again
    has the same value, and the rounding of a batch is not to decide. The draw is a Gumbel top-k of hashes of (seed,
    layer, head, position, tokens of the row): another at each cut, the same in every batch. The published window is
    its interval, 128 ("residual").
    """

    n_large: int | None = setting(None, 0, _MOST, whole=True)
    width: int = setting(5, 1, 4097, whole=True, odd=True)

    core: ClassVar[str] = "vase"

    def arguments(self, layer: int) -> ScoreArguments:
        large = -1 if self.n_large is None else self.n_large
        seed = self.seed * 1_000_003 + layer
        return ScoreArguments(self.core, kernel=self.width, seed=seed, n_large=large, n_sink=self.n_sink)


@SCORERS.enter("dkv")
@dataclass(frozen=True)
class DKV(_Drawn):
    """VaSE's (arXiv 2606.03928) DKV: |k M|^2 |v M|^2 for a Gaussian [d, 20] matrix M, new at each cut; no queries.

    The first n_sink tokens stay. The code draws a matrix for each row of a batch; here one that depends on (seed,
    layer, tokens of the row), so that a row is cut as it is alone.
    """

    core: ClassVar[str] = "dkv"

    def arguments(self, layer: int) -> ScoreArguments:
        return ScoreArguments(self.core, seed=self.seed * 1_000_003 + layer, n_sink=self.n_sink)


@LAYERS.enter("pyramid-published")
@dataclass(frozen=True)
class PyramidPublished(LayerAllocator):
    """PyramidKV's (arXiv 2406.02069) as in its code, in integers (`allocate.pyramid_published`), at each cut anew.

    The step from layer to layer is rounded down, so that a head may hold (layers - 1) / 2 slots more than the budget
    or max_bytes says; "pyramid" has the same slope and the exact total. A prompt's length is the row's tokens so far:
    rows of less than twice the budget are cut evenly. beta is used as a whole number, rounded down.
    """

    beta: float = setting(20.0, 1, 1e6)

    sets_total = True

    def totals(self, claims: npt.NDArray[np.float64], total: int, view: RowView) -> Numbers:
        layers = len(claims)
        capacity = total // (layers * view.heads)
        of_head = allocate.pyramid_published(layers, capacity, view.window, view.tokens, int(self.beta))
        return [view.heads * slots for slots in of_head]
