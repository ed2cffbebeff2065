"""`reasonalloc completion`: a shell's completion script, made by shtab from the parsers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

INSTALL = "pip install shtab"
_FILES, _FOLDERS = ("FILE", "PNG", "TRACE"), ("DIR",)  # what metavars stand for


def run(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"completion needs shtab: {INSTALL}") from error
    from reasonalloc.cli import parser

    whole = parser()
    for action in _actions(whole):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(whole, shell=args.shell) + "\n")
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
