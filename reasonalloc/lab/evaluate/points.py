"""Configs of several methods, each at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from reasonalloc.config import Config
from reasonalloc.methods import METHODS, options_of, takes_size

_OF_EVICTION = ("recall", "cold_slots", "cold_format")  # fields that are refused where nothing goes


def points_of(
    methods: Sequence[str],
    budgets: Sequence[int],
    ratios: Sequence[float],
    settings: Mapping[str, Any],
    sizes: Sequence[int | str] = (),
) -> list[Config]:
    """A config for each method at each budget, ratio or size in bytes; one alone for a method that takes no size.

    settings: other fields of `Config`, for every method; the full cache goes without those that say how tokens go, and
    each of `options` goes to the methods that have it. Raises ValueError for one that none has.
    """
    options = dict(settings.get("options") or {})
    shared = {key: value for key, value in settings.items() if key != "options"}
    has = {name: options_of(name, shared) for name in map(METHODS.own, methods)}
    _check_owned(options, has)
    configs: list[Config] = []
    for name, names in has.items():
        own = shared | {"method": name, "options": {key: value for key, value in options.items() if key in names}}
        if METHODS[name].unlimited:
            own = {key: value for key, value in own.items() if key not in _OF_EVICTION}
        if not takes_size(name, shared):
            configs.append(Config(**own))
            continue
        configs += [Config(budget=b, **own) for b in budgets]
        configs += [Config(ratio=r, **own) for r in ratios]
        configs += [Config(max_bytes=s, **own) for s in sizes]
    return configs


def _check_owned(options: Mapping[str, Any], has: Mapping[str, Sequence[str]]) -> None:
    known = sorted({x for names in has.values() for x in names} - {x.name for x in fields(Config)})
    for option in options:
        if not any(option in names for names in has.values()):
            raise ValueError(
                f"none of the methods {', '.join(has)} has the option {option!r}; they have"
                f" {', '.join(known) or 'none'}"
            )
