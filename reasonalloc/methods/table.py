"""The table of methods: registration by name, and combining parts of several."""

from __future__ import annotations

import difflib
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reasonalloc.allocate import HEADS, LAYERS
from reasonalloc.methods.base import Method
from reasonalloc.score import SCORERS

if TYPE_CHECKING:
    from reasonalloc.config import Config

_TABLE: dict[str, type[Method]] = {}

M = TypeVar("M", bound=type[Method])


def register(name: str) -> Any:
    """Class decorator: enters a `Method` dataclass into the table, so that Config(method=name) takes it."""

    def enter(cls: M) -> M:
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise ValueError(f"{cls!r} is not a subclass of reasonalloc.Method")
        if name in _TABLE and _TABLE[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"method {name!r} exists already: {_TABLE[name].__qualname__}")
        cls.name = name
        _TABLE[name] = cls
        return cls

    if not isinstance(name, str) or not name:
        raise ValueError(f"register takes the method's name, as in @register('mine'), got {name!r}")
    return enter


def methods() -> list[str]:
    """Names that Config(method=...) takes."""
    return sorted(_TABLE)


def _find(kind: str, name: str, more: tuple[str, ...] = ()) -> type[Method]:
    if name not in _TABLE:
        near = difflib.get_close_matches(name, [*more, *_TABLE], 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{kind} {name!r} is unknown{hint}; there are {', '.join([*more, *methods()])}")
    return _TABLE[name]


def _look_up(kind: str, name: str, more: tuple[str, ...]) -> type[Method] | None:
    """The method that lends its part, or None where the name is a part of its own."""
    return None if name in more else _find(kind, name, more)


def _build(config: Config, name: str) -> Method:
    cls = _find("method", name)
    own = [f for f in fields(cls) if f.name not in {g.name for g in fields(Method)}]
    unknown = set(config.options) - {f.name for f in own}
    if unknown:
        raise ValueError(
            f"method {name!r} has no option {sorted(unknown)[0]!r}; it has {[f.name for f in own] or 'none'}"
        )
    for f in own:
        if f.name not in config.options and f.default is MISSING and f.default_factory is MISSING:
            what = "file" if f.name in cls.files else "option"
            raise ValueError(f"method {name!r} needs the {what} {f.name!r}: Config(options={{{f.name!r}: ...}})")
    for file in cls.files:
        if file in config.options and not Path(config.options[file]).is_file():
            raise ValueError(f"method {name!r}: the file {file!r} does not exist: {config.options[file]}")
    return cls(**dict(config.options))


def resolve(config: Config) -> Method:
    """The method of a config, with the parts that it replaces."""
    method = _build(config, config.method)
    changes: dict[str, Any] = {}
    borrowed: dict[str, Any] = {}
    if config.scorer is not None:
        other = _look_up("scorer", config.scorer, tuple(SCORERS))
        changes["scorer"] = config.scorer if other is None else other().scorer
        borrowed["score"] = Method.score if other is None else other.score
    if config.heads is not None:
        other = _look_up("heads", config.heads, tuple(HEADS))
        changes["heads"] = config.heads if other is None else other().heads
        borrowed["head_budgets"] = Method.head_budgets if other is None else other.head_budgets
    if config.layers is not None:
        other = _look_up("layers", config.layers, LAYERS)
        changes["layers"] = config.layers if other is None else other().layers
        borrowed["layer_totals"] = Method.layer_totals if other is None else other.layer_totals
    for name in ("interval", "keep_prompt", "sinks"):
        if getattr(config, name) is not None:
            changes[name] = getattr(config, name)
    borrowed = {name: function for name, function in borrowed.items() if getattr(type(method), name) is not function}
    if borrowed:  # functions are looked up on the class, so a mixed method is a class of its own
        mixed = type(f"{type(method).__name__}Mixed", (type(method),), borrowed)
        method = mixed(**{f.name: getattr(method, f.name) for f in fields(method)})
    return replace(method, **changes)
