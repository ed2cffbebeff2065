"""Options that several commands share, and what they become."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from rich.console import Console

from reasonalloc.cli import settings
from reasonalloc.cli.console import bar, wide_console
from reasonalloc.config import Config
from reasonalloc.files import replace_text
from reasonalloc.lab.models import DTYPES, EMBEDDED_LABEL, REASONER, REASONERS, load
from reasonalloc.methods import methods
from reasonalloc.protocols import Model, Tokenizer

T = TypeVar("T")

# What options are added to, by the names that argparse gives them.
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Group: TypeAlias = argparse._ActionsContainer

__all__ = ["bar", "wide_console"]  # and all of its own


def late(command: str, function: str = "run") -> Callable[[argparse.Namespace], int]:
    """What a command runs: a function of its module, which is imported only then."""

    def run(args: argparse.Namespace) -> int:
        return int(getattr(import_module(f"reasonalloc.cli.{command}"), function)(args))

    return run


def new_file(text: str) -> str:
    """A file that is written after the work, its folder made then: what cannot be is said before it."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return _can_be_made(text)


def new_folder(text: str) -> str:
    """A folder that is written to after the work, made then if it is missing."""
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no folder")
    return text if Path(text).is_dir() else _can_be_made(text)


def _can_be_made(text: str) -> str:
    above = next(x for x in Path(text).absolute().parents if x.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be made: {str(above)!r} is no folder that can be written to")
    return text


def file_in_folder(text: str) -> str:
    """As `new_file`, where no folder is made for it."""
    if Path(text).is_dir() or not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that exists")
    return text


def positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 12 or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive whole number of at most 12 digits, got {text!r}")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 of at most 18 digits, got {text!r}")
    return int(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must lie above 0 and at most at 1, got {text!r}")
    return value


def from_0_to_1(text: str) -> float:
    value = not_negative(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text!r}")
    return value


def not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0, got {text!r}")
    return value


def above_0(text: str) -> float:
    value = not_negative(text)
    if not value:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text!r}")
    return value


def comma(item: Callable[[str], T]) -> Callable[[str], list[T]]:
    """The type of an option that takes several values, as in 64,128."""

    def parse(text: str) -> list[T]:
        parts = [x.strip() for x in text.split(",")]
        if not all(parts):
            raise argparse.ArgumentTypeError(
                f"an entry of the list is empty in {text!r}: write it as A,B, in quotes if there are blanks"
            )
        return [item(x) for x in parts]

    return parse


def add_model(
    parser: argparse.ArgumentParser, reasoner: bool = False, dtype: str | None = "float32", of_task: bool = False
) -> None:
    """reasoner: the default is an embedded reasoner, ledger's or, as None, that `of_task`. dtype: the default; None: a
    study's own, bfloat16."""
    base = f"smollm2, {EMBEDDED_LABEL}"
    default, name = (f"{REASONER}, a reasoner; also {base}", REASONER) if reasoner else (base, None)
    if of_task:
        own = ", ".join(f"{name} for {task}" for task, name in REASONERS.items() if name != REASONER)
        default, name = f"{own}, else {default}", None
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=name, metavar="NAME", help=f"hub name or folder (default: {default})")
    group.add_argument(
        "--dtype", choices=list(DTYPES), default=dtype, help=f"of weights and cache ({dtype or 'bfloat16'})"
    )
    group.add_argument(
        "--device-map",
        metavar="MAP",
        help="where the model lies: auto, cuda, cuda:1, ... (cpu)",
    )
    group.add_argument("--threads", type=positive, metavar="N", help="of torch (default: torch's own choice)")


def load_model(args: argparse.Namespace, out: Console | None = None) -> tuple[Model, Tokenizer, str]:
    """(model, tokenizer, label) as the options of `add_model` say. out: a terminal that says so meanwhile."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    with out.status("loading the model") if out is not None and out.is_terminal else nullcontext():
        return load(args.model, args.dtype, args.device_map)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", type=file_in_folder, metavar="FILE", help="write the figures as JSON; - for standard output"
    )


def console(args: argparse.Namespace) -> Console:
    """Where to print for people: standard error while standard output is the JSON's."""
    return wide_console(stderr=args.json == "-")


def write_json(target: str | None, data: object) -> None:
    """data: JSON-ready. target: a file, "-" for standard output, None for nowhere."""
    if target is None:
        return
    text = json.dumps(data, indent=1) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        replace_text(target, text, folders=False)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """The options of `config_of`."""
    group = parser.add_argument_group("cache")
    add_method(group, methods())
    size = group.add_mutually_exclusive_group()
    size.add_argument("--budget", type=positive, metavar="SLOTS", help="tokens that a KV head keeps, on the average")
    size.add_argument("--ratio", type=share, metavar="SHARE", help="the same as a share of the full cache")
    size.add_argument("--max-bytes", metavar="SIZE", help="the same as bytes of the whole cache, like 512MiB")
    add_interval(group)
    add_keep_prompt(group)
    add_alpha(group)
    add_profile(group)
    settings.add(group, ("method",))


def add_method(parser: Group, allowed: list[str]) -> None:
    parser.add_argument(
        "--method", default="reasonalloc", type=str.lower, choices=allowed, metavar="NAME", help=", ".join(allowed)
    )


def add_interval(parser: Group) -> None:
    parser.add_argument("--interval", type=positive, metavar="TOKENS", help="between two cuts (default: the method's)")


def add_keep_prompt(parser: Group, note: str = "") -> None:
    """keep_prompt: True, False, or None for each method's own."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--keep-prompt", action="store_true", default=None, help=f"evict the prompt last, whatever the method{note}"
    )
    group.add_argument("--drop-prompt", dest="keep_prompt", action="store_false", help="treat it as any other text")


def add_alpha(parser: Group, note: str = "") -> None:
    parser.add_argument(
        "--alpha", type=from_0_to_1, metavar="X", help=f"R-KV's weight of importance against redundancy (0.1){note}"
    )


def add_profile(parser: Group) -> None:
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help="layer wave: a file of `reasonalloc profile` or a Hub repository (default: measured on the prompt)",
    )


def settings_of(args: argparse.Namespace, taken: Collection[str] = ()) -> dict[str, Any]:
    """Fields of `ra.Config` as the options above and `--set` say. taken: those that the command varies itself."""
    values = {name: getattr(args, name, None) for name in ("interval", "keep_prompt", "alpha", "profile")}
    return settings.merged(values, settings.parse(args.settings_given, taken))


def config_of(args: argparse.Namespace) -> Config:
    given = settings_of(args, ("method",))
    sizes = {name: getattr(args, name) for name in ("budget", "ratio", "max_bytes")}
    return Config(method=args.method, **settings.merged(sizes, given))
