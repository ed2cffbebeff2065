"""Configs of several methods, each at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from reasonalloc.config import Config
from reasonalloc.methods.compose import is_sized, options_of
from reasonalloc.methods.table import METHODS


def points_of(
    methods: Sequence[str],
    budgets: Sequence[int],
    ratios: Sequence[float],
    base: Config,
    sizes: Sequence[int | str] = (),
    options: Mapping[str, Any] | None = None,
) -> list[Config]:
    """A config for each method at each budget, ratio or size in bytes, the rest as in `base`; one alone for a method
    without a budget.

    base: any valid config; its method, budget, ratio, max_bytes and options do not matter. options: each goes to the
    methods that have it. Raises ValueError for one that none has.
    """
    given, configs = dict(options or {}), list[Config]()
    has = {name: options_of(base, METHODS.own(name)) for name in methods}
    for option in given:
        if not any(option in own for own in has.values()):
            all_of_them = sorted({x for own in has.values() for x in own if not hasattr(base, x)})
            raise ValueError(
                f"none of the methods {', '.join(methods)} has the option {option!r}; they have"
                f" {', '.join(all_of_them) or 'none'}"
            )
    for name, own in has.items():
        bare: dict[str, Any] = {"method": name, "budget": None, "ratio": None, "max_bytes": None}
        bare["options"] = {key: value for key, value in given.items() if key in own}
        if not is_sized(base, METHODS.own(name)):
            configs.append(replace(base, **bare))
            continue
        configs += [replace(base, **{**bare, "budget": b}) for b in budgets]
        configs += [replace(base, **{**bare, "ratio": r}) for r in ratios]
        configs += [replace(base, **{**bare, "max_bytes": s}) for s in sizes]
    return configs
