"""Watching a batch of chains: their newest words and speed as they run, time and bytes of every step afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers.cache_utils import Cache

from reasonalloc.files import visible
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.protocols import Tokenizer

_REFRESH = 0.25  # seconds; drawing costs time that the model wants, and is not counted
_SPOKEN = 20.0  # seconds between lines where there is no terminal
_MOST_ROWS = 16  # on the screen


@dataclass(frozen=True)
class Step:
    """One token of each row. size: bytes of the cache after it, all rows."""

    seconds: float
    rows: int
    size: int


def speed_of(steps: Sequence[Step]) -> float:
    """Tokens a second, all rows together; 0 where there are no steps."""
    seconds = sum(x.seconds for x in steps)
    return sum(x.rows for x in steps) / seconds if seconds else 0.0


def cache_bytes(cache: Cache) -> int:
    """Bytes of keys and values in a cache: pages of ours, tensors of transformers' layers."""
    own = int(cache.page_bytes_by_row().sum()) if isinstance(cache, ReasonAllocCache) else 0
    found = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return own + sum(x.nbytes for x in found if isinstance(x, torch.Tensor))


class BatchWatch:
    """What `hf.decode.chains` calls at each step; `ended` when a chain has. What the watching itself costs is not in
    `steps`. Use it as a context manager; what it showed is wiped at the end.

    ids: token ids of each chain so far, by key. steps: the first is the prompt's. rows: keys of the step's rows.
    """

    def __init__(self, out: Console, tokenizer: Tokenizer, cache: Cache, keys: Sequence[str], title: str) -> None:
        self.ids: dict[str, list[int]] = {key: [] for key in keys}
        self.steps: list[Step] = []
        self.rows: list[str] = list(keys)
        self._notes: dict[str, Text] = {}
        self._console, self._tokenizer, self._cache, self._title = out, tokenizer, cache, title
        self._live = Live(console=out, auto_refresh=False, transient=True) if out.is_terminal else None
        self._resumed = self._shown = 0.0

    def __enter__(self) -> BatchWatch:
        if self._live:
            self._live.start()
        self._shown = time.perf_counter()
        self.resume()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, logits: torch.Tensor, keys: Sequence[str], picked: Sequence[int]) -> None:
        seconds = time.perf_counter() - self._resumed
        self.steps.append(Step(seconds, len(keys), cache_bytes(self._cache)))
        self.rows = list(keys)
        for key, token in zip(keys, picked, strict=True):
            self.ids[key].append(token)
        if time.perf_counter() - self._shown > (_REFRESH if self._live else _SPOKEN):
            self._show()
            self._shown = time.perf_counter()
        self.resume()

    def resume(self) -> None:
        """Time counts from here."""
        self._resumed = time.perf_counter()

    def ended(self, key: str, note: Text) -> None:
        """note: what is shown beside the chain from now on."""
        self._notes[key] = note

    @property
    def speed(self) -> float:
        """Tokens a second after the prompt, all rows together; 0 before the second token."""
        return speed_of(self.steps[1:])

    def _show(self) -> None:
        if self._live:
            self._live.update(self._picture(), refresh=True)
        else:
            self._console.print(f"  {self._figures()}", highlight=False, soft_wrap=True)

    def _figures(self) -> str:
        figures = [f"{len(self.steps):,} steps", f"{len(self.rows)} chains at work"]
        figures += [f"{self.speed:.0f} tokens a second", f"cache {self.steps[-1].size / 1e6:,.0f} MB"]
        return ", ".join(figures)

    def _picture(self) -> Group:
        width = max(self._console.width - 26, 10)
        chains = Table.grid(padding=(0, 1))
        for _ in range(2):
            chains.add_column(no_wrap=True, justify="right")
        chains.add_column(no_wrap=True, width=width)
        for key in list(self.ids)[:_MOST_ROWS]:
            newest = " ".join(self._tokenizer.decode(self.ids[key][-width:], skip_special_tokens=True).split())
            note = self._notes.get(key, Text("..."))
            chains.add_row(f"{len(self.ids[key]):,}", note, Text(visible(newest)[-width:]))
        more = f", {len(self.ids) - _MOST_ROWS} more chains" if len(self.ids) > _MOST_ROWS else ""
        below = Text(self._figures() + more, style="dim")
        return Group(Panel(chains, title=Text(visible(self._title)), title_align="left"), below)
