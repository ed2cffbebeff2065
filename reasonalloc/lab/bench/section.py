"""One table of the report, for the terminal and as Markdown, and how its cells are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Section:
    """One table. Cells are text; the first `words` columns are to the left."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""]
        if self.note:
            lines += [self.note, ""]
        if not self.rows:
            return "\n".join(lines)
        ends = ["---" if i < self.words else "---:" for i in range(len(self.header))]
        lines += ["| " + " | ".join(row) + " |" for row in (self.header, ends, *self.rows)]
        return "\n".join(lines) + "\n"

    def rich(self) -> Table:
        table = Table(title=self.title, caption=self.note or None, title_justify="left", caption_justify="left")
        for i, name in enumerate(self.header):
            table.add_column(name, justify="left" if i < self.words else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds < 0.1 else f"{seconds * 1e3:.1f}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"


def thousands(number: int) -> str:
    return f"{number:,}"


def names_in(rows: Sequence[Any], key: str = "ratio") -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row[key]))
