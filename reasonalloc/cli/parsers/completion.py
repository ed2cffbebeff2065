"""Options of `reasonalloc completion`."""

from __future__ import annotations

from reasonalloc.cli import options

SHELLS = ("bash", "zsh")


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print a shell's completion script",
        description="Prints a script that completes commands, options and names of methods. For bash, for example:"
        " reasonalloc completion bash > ~/.local/share/bash-completion/completions/reasonalloc",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=options.late("completion"))
