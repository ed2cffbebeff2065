"""One table, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich.table import Table
from rich.text import Text

from reasonalloc.files import visible


@dataclass(frozen=True)
class Section:
    """One table. Cells are text, as it is: nothing in them is markup. The first `words` columns are to the left."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        return "\n".join([*lines, self.markdown_rows()]) if self.rows else "\n".join(lines)

    def markdown_rows(self) -> str:
        """The table without its title and note."""
        ends = ["---" if i < self.words else "---:" for i in range(len(self.header))]
        lines = [[_cell(x) for x in self.header], ends, *([_cell(x) for x in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"

    def html(self) -> str:
        """The table for a notebook, its title above it."""

        def line(cells: Sequence[str], tag: str) -> str:
            sides = ["left" if i < self.words else "right" for i in range(len(cells))]
            parts = (f'<{tag} style="text-align:{s}">{escape(x)}</{tag}>' for x, s in zip(cells, sides, strict=True))
            return f"<tr>{''.join(parts)}</tr>"

        head, body = line(self.header, "th"), "".join(line(row, "td") for row in self.rows)
        return f"<table><caption>{escape(self.title)}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"

    def rich(self) -> Table:
        note = Text(visible(self.note)) if self.note else None
        table = Table(title=Text(visible(self.title)), caption=note, title_justify="left", caption_justify="left")
        for i, name in enumerate(self.header):
            # what tells rows apart is folded where the terminal is narrow, never cut off
            left = i < self.words
            table.add_column(Text(visible(name)), justify="left" if left else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(visible(x)) for x in row))
        return table


def _cell(text: str) -> str:
    """For Markdown: one line, and no end of the cell within it."""
    return " ".join(visible(text).split("\n")).replace("|", "\\|")
