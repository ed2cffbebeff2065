"""Where commands print: texts of files, users and models come out as they are, and do nothing to the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from reasonalloc.files import visible

_FILE_WIDTH = 150  # columns where no terminal says how wide it is


class PlainConsole(Console):
    """Knows no markup and no emoji in plain texts (use `Text` for a style) and spells control characters out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


class _Description(TextColumn):
    def __init__(self) -> None:
        super().__init__("{task.description}", markup=False)

    def render(self, task: Task) -> Text:
        return Text(visible(task.description))


class _Count(MofNCompleteColumn):
    """Says nothing while it is not known how much there is: a model is being loaded."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


def wide_console(stderr: bool = False) -> Console:
    """A terminal as it is, a file wide enough for tables."""
    out = PlainConsole(stderr=stderr)
    return out if out.is_terminal else PlainConsole(stderr=stderr, width=_FILE_WIDTH)


def bar(out: Console) -> Progress:
    """A progress bar; none where the output is not a terminal."""
    columns = (_Description(), BarColumn(), _Count(), TimeRemainingColumn())
    return Progress(*columns, console=out, disable=not out.is_terminal, transient=True)
