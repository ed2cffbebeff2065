"""Dataclasses out of JSON, the type of every field checked."""

from __future__ import annotations

import reprlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from reasonalloc.files import read_saved

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def build(kind: type[T], value: object, name: str, *, others: bool = False) -> T:
    """`value`, as JSON gives it, as the dataclass `kind`, with the types that its annotations say.

    name: what errors call the value. others: leave out fields that `kind` does not have. Lists become tuples and
    objects dataclasses where annotated so; a whole number may stand for any number. Raises ValueError naming the field,
    what it is and what it must be; also where a field is missing or unknown. What the dataclass itself refuses is its
    own error.
    """
    if others and isinstance(value, dict):
        value = {key: x for key, x in value.items() if key in _hints(cast(Any, kind))}
    return cast(T, _as(kind, value, name))


def load(kind: type[T], path: str | Path, what: str, schema: int) -> T:
    """`build` of a file that says of which schema it is. what: what errors call it."""
    data = read_saved(path, what, schema)
    try:
        return build(kind, data, "it")
    except ValueError as error:
        raise ValueError(f"{path} is not a {what} of schema {schema}: {error}") from error


def _as(kind: Any, value: object, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return value
    if is_dataclass(kind):
        return _dataclass(kind, value, name)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, name)
    if origin is list:
        return [_as(arguments[0], x, f"{name}[{i}]") for i, x in enumerate(_is(list, value, name, "a list"))]
    if origin is tuple:
        return _tuple(arguments, _is(list, value, name, "a list"), name)
    if origin in (dict, Mapping) or kind is dict:
        inner = arguments[1] if arguments else Any
        return {key: _as(inner, x, f"{name}[{key!r}]") for key, x in _is(dict, value, name, "an object").items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise _wrong(value, name, "a number that a double can hold") from None
    if kind in _WORDS:
        return _is(kind, value, name, _WORDS[kind])
    raise TypeError(f"fields of type {kind} are not read from JSON")


def _dataclass(kind: Any, value: object, name: str) -> Any:
    given: Mapping[str, object] = _is(dict, value, name, "an object")
    hints = _hints(kind)
    own = {x.name: x for x in fields(kind) if x.init}
    unknown = sorted(set(given) - set(own))
    missing = [
        x.name for x in own.values() if x.name not in given and x.default is MISSING and x.default_factory is MISSING
    ]
    if unknown or missing:
        parts = [f"{word} {', '.join(map(repr, names))}" for word, names in _named(missing, unknown) if names]
        others = f" (there are {', '.join(own)})" if unknown else ""
        raise ValueError(f"{name} has fields that are {'; '.join(parts)}{others}")
    return kind(**{key: _as(hints[key], x, f"{name}: {key}") for key, x in given.items()})


def _named(missing: Sequence[str], unknown: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    return [("missing:", missing), ("unknown:", unknown)]


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _one_of(kinds: Sequence[Any], value: object, name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    others = [x for x in kinds if x is not type(None)]
    for kind in others[:-1]:
        try:
            return _as(kind, value, name)
        except ValueError:
            continue
    return _as(others[-1], value, name)


def _tuple(kinds: Sequence[Any], values: Sequence[object], name: str) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = [kinds[0]] * len(values)
    if len(kinds) != len(values):
        raise _wrong(values, name, f"{len(kinds)} values")
    return tuple(_as(kind, x, f"{name}[{i}]") for i, (kind, x) in enumerate(zip(kinds, values, strict=True)))


def _is(kind: Any, value: Any, name: str, words: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(value, name, words)
    if kind is dict:
        for key in value:
            if not isinstance(key, str):
                raise ValueError(
                    f"{name} must have texts for keys, got {key!r} ({type(key).__name__}): write it in quotes"
                )
    if kind is int and not -(2**63) <= value < 2**63:
        raise _wrong(value, name, "a whole number of 64 bits")
    return value


def _wrong(value: object, name: str, words: str) -> ValueError:
    return ValueError(f"{name} must be {words}, got {reprlib.repr(value)} ({type(value).__name__})")
