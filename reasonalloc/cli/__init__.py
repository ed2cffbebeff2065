"""The command line: the options of each command in parsers/, its work in a file here that is imported when it runs."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from reasonalloc import __version__
from reasonalloc.cli.parsers import COMMANDS
from reasonalloc.files import visible

# What a user can put right; anything else is a defect and keeps its traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, NotImplementedError, ModuleNotFoundError)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what it does not know itself, so that the error points at the help of the command."""
        found, others = super().parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}{self._hint(others[0])}")
        return found, others

    def _hint(self, other: str) -> str:
        """What was probably meant by an argument that is not known; "" where that cannot be guessed."""
        if not other.startswith("-"):
            lists = any("," in str(x.metavar) for x in self._actions)
            return "; a list is written with commas, as in A,B" if lists else ""
        near = difflib.get_close_matches(other.partition("=")[0].replace("_", "-"), self._option_string_actions, 1, 0.8)
        return f"; did you mean {near[0]}?" if near else ""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="reasonalloc", description="A key-value cache with a fixed budget for reasoning models.")
    top.add_argument("--version", action="version", version=f"reasonalloc {__version__}")
    top.add_argument("--traceback", action="store_true", help="show where an error came from")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(subparsers)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 where a check failed, 2 for input that cannot be used, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = parser().parse_args(arguments or ["--help"])
        return int(args.run(args) or 0)
    except Exception as error:
        if "--traceback" in arguments or not _of_the_user(error):
            raise
        print(f"reasonalloc: {visible(' '.join(str(error).split())) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reasonalloc: interrupted", file=sys.stderr)
        return 130


def _of_the_user(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # an error of its own means that it is loaded
    return isinstance(error, _USER_ERRORS) or (torch is not None and isinstance(error, torch.OutOfMemoryError))
