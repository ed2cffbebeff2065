"""Watching a generation: text and speed as it runs, times and figures afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers.generation.streamers import BaseStreamer

from reasonalloc.files import visible
from reasonalloc.protocols import Tokenizer

_REFRESH = 0.2  # seconds; drawing costs time that the model wants
_LINES = 8


class Watch(BaseStreamer):
    """A streamer for `generate` that takes the time; what the watching itself costs does not count.

    tokens: ids of the new tokens. prefill_seconds: up to the first of them. decode_seconds: all after the first.
    on_token: called after each new token.
    """

    def __init__(self, on_token: Callable[[], None] | None = None) -> None:
        self.tokens: list[int] = []
        self.prefill_seconds = self.decode_seconds = 0.0
        self._on_token = on_token
        self._prompt = True
        self._resumed = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        now = time.perf_counter()
        if self._prompt:  # generate hands over the prompt first
            self._prompt = False
        else:
            if self.tokens:
                self.decode_seconds += now - self._resumed
            else:
                self.prefill_seconds = now - self._resumed
            self.tokens += value.reshape(-1).tolist()
            if self._on_token:
                self._on_token()
            self.show()
        self._resumed = time.perf_counter()

    def end(self) -> None:
        pass

    def show(self) -> None:
        """Called after each token."""

    @property
    def speed(self) -> float:
        """Tokens per second of decoding; 0 before the second token."""
        return (len(self.tokens) - 1) / self.decode_seconds if self.decode_seconds else 0.0


class LiveWatch(Watch):
    """Shows the newest lines of text over a bar with the speed where `out` is a terminal, nothing elsewhere.

    Use it as a context manager; what it showed is wiped at the end.
    """

    def __init__(
        self, out: Console, tokenizer: Tokenizer, title: str, total: int, on_token: Callable[[], None] | None = None
    ) -> None:
        super().__init__(on_token)
        self._tokenizer, self._title, self._total = tokenizer, title, total
        self._live = Live(console=out, auto_refresh=False, transient=True) if out.is_terminal else None
        self._console, self._shown = out, 0.0

    def __enter__(self) -> LiveWatch:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        if self._live and time.perf_counter() - self._shown > _REFRESH:
            self._live.update(self._picture(), refresh=True)
            self._shown = time.perf_counter()

    def _picture(self) -> Group:
        width = max(self._console.width - 4, 10)
        newest = visible(self._tokenizer.decode(self.tokens[-_LINES * width :], skip_special_tokens=True))
        lines = Text(newest).wrap(self._console, width)[-_LINES:]
        done = len(self.tokens)
        line = Text(f"{done:,} of {self._total:,} tokens, {self.speed:.1f} a second", style="dim")
        below = Table.grid(padding=(0, 1))
        below.add_row(ProgressBar(total=self._total, completed=done, width=max(width - 40, 5)), line)
        return Group(Panel(Text("\n").join(lines), title=Text(visible(self._title)), title_align="left"), below)


class PrintWatch(Watch):
    """Prints the text as it comes, plainly, by `write`."""

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], None]) -> None:
        super().__init__()
        self._tokenizer, self._write, self._printed, self._start = tokenizer, write, "", 0

    def show(self) -> None:
        text = self._tokenizer.decode(self.tokens[self._start :], skip_special_tokens=True)
        if text.endswith("\ufffd"):  # half a character
            return
        self._write(text[len(self._printed) :])
        self._printed = text
        if text.endswith("\n"):  # a fresh line, so that decoding stays cheap
            self._start, self._printed = len(self.tokens), ""


def shorten(text: str, most: int = 600) -> str:
    """Beginning and end of a long text."""
    half = most // 2
    return (
        text if len(text) <= most else f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"
    )
