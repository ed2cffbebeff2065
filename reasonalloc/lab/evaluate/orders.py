"""The budgets of a wave dealt to the layers in other orders."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from reasonalloc import allocate
from reasonalloc.config import Config
from reasonalloc.policy.layers import Wave
from reasonalloc.policy.wave import WaveProfile

LOW = 0.5  # of the mean: layers with less keep hardly more than a prompt
_FINE = 10**6
_IN_VAIN = 100  # deals in a row that have all been there: there are no others

Shares = npt.NDArray[np.float64]


def followed(config: Config) -> Wave:
    """The layer allocator of a method; ValueError where it does not follow a wave."""
    part = config.policy().layers
    if not isinstance(part, Wave) or not part.gamma:
        raise ValueError(f"it needs a wave that is followed: gamma above 0, and layers 'wave' (got {config.method!r})")
    return part


def shares_of(wave: WaveProfile, part: Wave) -> Shares:
    """What each layer gets of a large budget, after gamma and the bounds; the mean is 1."""
    dealt = allocate.robustify(wave.demand, _FINE, part.gamma, part.lo, part.hi)
    return np.asarray(dealt * len(wave.demand) / _FINE)


def demand_of(shares: Shares, part: Wave) -> tuple[float, ...]:
    """The demands that become these shares."""
    return tuple((shares ** (1 / part.gamma)).tolist())


def deal(shares: Shares, stays: npt.NDArray[np.bool_], seed: int) -> Shares:
    """The shares in a random order, but for the layers that keep theirs."""
    others, mixed = shares[~stays].tolist(), shares.copy()
    random.Random(f"permuted/{seed}").shuffle(others)
    mixed[~stays] = others
    return mixed


def orders(shares: Shares, stays: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Shares]]:
    """(seed, dealt shares) for the seeds 0, 1, ..., each order once and never the shares' own."""
    seen, vain, seed = {_rounded(shares)}, 0, 0
    while vain < _IN_VAIN:
        dealt = deal(shares, stays, seed)
        vain += 1
        if _rounded(dealt) not in seen:
            seen.add(_rounded(dealt))
            vain = 0
            yield seed, dealt
        seed += 1


def _rounded(shares: Shares) -> bytes:
    """Equal where orders are: equal demands may differ by the slots that were left over."""
    return np.round(shares, 4).tobytes()
