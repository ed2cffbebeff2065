"""Copies of a cache that go on by themselves."""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar

from reasonalloc.hf.step import Step


class _Stepping(Protocol):
    """A cache that goes through forward passes."""

    step: Step

    @property
    def is_amid_pass(self) -> bool: ...


T = TypeVar("T", bound=_Stepping)

# What copies have in common. Pages are written to by one of their owners only: the pool copies those that have several.
_SHARED = ("model", "config", "policy", "observers", "replayed")


def check_not_amid_pass(cache: _Stepping, what: str) -> None:
    """Raises RuntimeError amid a forward pass or a cut, with the cache as it was. what: for the message."""
    if cache.is_amid_pass and cache.step.closed is None:
        raise RuntimeError(
            f"a cache cannot be {what} in the middle of a forward pass: some layers have its tokens and others do not;"
            " do it between two passes (where one was interrupted, call reset())"
        )


def independent_copy(cache: T, memo: dict[int, object]) -> T:
    """What `copy.deepcopy(cache)` gives. memo: of the copy that is being made."""
    check_not_amid_pass(cache, "copied")
    cutter = vars(cache)["_cutter"]
    if cutter is not None:
        cutter.fetch()  # what is on a device still belongs to this one's layers
    own_memo = dict(memo)  # what caches share others may still want to copy, the model above all
    state = vars(cache)
    for name in _SHARED:
        if name in state:
            own_memo[id(state[name])] = state[name]
    schedule = state["policy"].schedule  # clocks may hold it
    own_memo[id(schedule)] = schedule
    own_memo.update({id(shared): shared for shared in (*state["observers"], *state["_pools"].values())})
    twin = type(cache).__new__(type(cache))
    own_memo[id(cache)] = twin
    vars(twin).update({name: copy.deepcopy(value, own_memo) for name, value in state.items()})
    return twin
