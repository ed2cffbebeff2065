"""Fields of `ra.Config` on the command line: `--set KEY=VALUE`, made from the fields themselves."""

from __future__ import annotations

import argparse
import json
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from reasonalloc.config import Config
from reasonalloc.meant import meant
from reasonalloc.policy.wave import WaveProfile

VARIED = ("method", "budget", "ratio", "max_bytes")  # by the command itself
CHOSEN = (*VARIED, "options")  # the same, where it chooses the methods too
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def names() -> list[str]:
    return [x.name for x in fields(Config)]


def add(parser: argparse._ActionsContainer, taken: Collection[str] = ()) -> None:
    """The option `--set`. taken: fields that other options of the command give."""
    free = [x for x in names() if x not in taken and x != "options"]
    hint = "" if "options" in taken else "; options.NAME=VALUE for what only some methods have"
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings_given",
        help=f"a field of ra.Config, may be repeated: {', '.join(free)}{hint}",
    )  # fmt: skip


def parse(given: Sequence[str], taken: Collection[str] = ()) -> dict[str, Any]:
    """Fields of `Config` out of texts like "alpha=0.3"; ValueError that names the text and what is allowed.

    taken: fields that may not be given here.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, sign, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not sign:
            raise ValueError(f"--set {text}: it must be like alpha=0.3")
        if key.startswith("options."):
            if "options" in taken:
                raise ValueError(f"--set {text}: options are of single methods, and this command chooses its own")
            own, name = found.setdefault("options", {}), key.removeprefix("options.")
            if name in own:
                raise ValueError(f"--set {text}: {key} is given twice")
            own[name] = _json(value)
            continue
        if key not in names() or key == "options":
            hint = meant(key, names(), str)
            raise ValueError(f"--set {text}: there is no {key!r}{hint}; there are {', '.join(names())}")
        if key in taken:
            raise ValueError(f"--set {text}: --{key.replace('_', '-')} gives it, or the command itself varies it")
        if key in found:
            raise ValueError(f"--set {text}: {key} is given twice")
        found[key] = _value(_kinds()[key], value.strip(), text)
    return found


@cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(Config)


def _value(kind: Any, value: str, text: str) -> Any:
    """value as one of the types of an annotation. text: what errors name."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if value.lower() in ("none", "null"):
        if type(None) in kinds:
            return None
        raise ValueError(f"--set {text}: it has no None")
    if bool in kinds:
        if value.lower() not in _TRUTH:
            raise ValueError(f"--set {text}: it must be true or false")
        return _TRUTH[value.lower()]
    if WaveProfile in kinds or str in kinds:
        return value  # a file or repository, a name, or a size like 512MiB
    for number, words in ((int, "a whole number"), (float, "a number")):
        if number in kinds:
            try:
                return number(value)
            except ValueError:
                raise ValueError(f"--set {text}: it must be {words}") from None
    raise TypeError(f"a field of type {kind} cannot be given as text")


def _json(value: str) -> Any:
    """JSON where it is JSON, else the text as it is."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def merged(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of their own (None: not given) with those of `--set`; ValueError for one that is given by both."""
    own = {key: value for key, value in options.items() if value is not None}
    twice = sorted(set(own) & set(given))
    if twice:
        raise ValueError(f"{twice[0]} is given twice: by --{twice[0].replace('_', '-')} and by --set")
    return own | dict(given)
