"""Decode steps of a model on a GPU as CUDA graphs: one launch a step, cuts included.

All that changes from step to step lies in the device's memory and moves on by itself; the host counts beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from reasonalloc.hf.attention import using
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.capture import Graphs
from reasonalloc.hf.compat import cache_argument
from reasonalloc.policy.cut import Cutter
from reasonalloc.protocols import Model


class Key(NamedTuple):
    """What a captured pass depends on: another one needs another graph.

    cut: layers that are cut after it. layers: C objects of all, which a cache that was reset has anew; the key keeps
    those that its graph refers to. generations: of their memory.
    """

    rows: int
    cut: tuple[bool, ...]
    layers: tuple[object, ...]
    generations: tuple[int, ...]


def why_not(cache: ReasonAllocCache) -> str:
    """Why no pass of a cache can be captured; empty if passes of one token can."""
    if not cache.ragged or any(layer.is_empty for layer in cache.ragged):
        return "the cache is empty: give it the prompt first"
    if len(cache.ragged) < len(cache.layers):
        return "layers of transformers' own count on the host"
    host = next((x for x in cache.ragged if x.pool.backend.capsule is None), None)
    if host is not None:
        note = host.pool.backend.note
        return f"layer {host.index} lies in host memory" + (f": {note}" if note else "")
    devices = {x.pool.backend.device for x in cache.ragged}
    if len(devices) > 1:
        return "its layers lie on several devices"
    if type(cache.cutter) is not Cutter:
        return "its layers are cut together, which the host looks at"
    if not cache.policy.unlimited and cache.cutter.parts_in_c(cache.ragged[0]) is None:
        return "observers, or parts of its method in Python, look at each cut"
    if (device := devices.pop()).type != "cuda":
        return f"CUDA graphs need a GPU, the cache lies on {device}"
    return ""


def prepare(cache: ReasonAllocCache) -> Key | None:
    """Makes room for a pass of one token a row that is captured or replayed next; None for one that cannot be.

    Call `cache.count_replay()` after a replay; what is captured is counted by the pass itself, and must be replayed.
    """
    step = cache.step
    step.check_between()
    cache._settle()
    if cache.prompt_goes_on or not (cache.policy.unlimited or cache.cutter.budgets.measured.all()):
        return None
    due = None
    if step.clocks is not None:
        segment = step.clocks.copy().plan(np.ones(cache.rows, np.int64), 1)[0]
        due = segment.due if segment.any_due else None
    if due is not None:
        cache.cutter.fetch()  # the figures of the cuts before, which the next ones write over
    cut = []
    for layer in cache.ragged:
        coming = None if due is None else cache.cutter.coming(layer, due)
        while missing := layer.core.prepare(1, *(coming or ())):
            layer.pool.grow(missing)
        cut.append(coming is not None)
    cores = tuple(layer.core for layer in cache.ragged)
    return Key(cache.rows, tuple(cut), cores, tuple(core.generation for core in cores))


class DecodeGraph:
    """Decodes with a model and a cache that lies on its GPU, a token of each row at a time.

    The first pass of a kind (with cuts, without) is an ordinary one, the second is captured, later ones are replayed.
    Between its steps the cache may be used as ever: its rows moved, more text fed, copies made.

    Parameters
    ----------
    model
        On one CUDA device, without autograd. It must not look at values on the host in a pass.
    cache
        Holds the prompt, on the GPU.

    Raises
    ------
    ValueError
        For a cache whose passes cannot be captured; the message says why.
    """

    def __init__(self, model: Model, cache: ReasonAllocCache) -> None:
        if reason := why_not(cache):
            raise ValueError(f"no CUDA graph of a pass can be made: {reason}")
        self.model, self.cache = model, cache
        self.replays = self.captures = 0
        self._device = cache.ragged[0].pool.backend.device
        self._graphs: Graphs[tuple[bool, ...], tuple[Key, torch.Tensor]] = Graphs(self._device)
        self._warm: set[tuple[bool, ...]] = set()
        self._tokens: list[int] = []  # of the rows, which `_positions` says
        self._ids = self._positions = torch.zeros(0, 1, dtype=torch.long, device=self._device)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Feeds the next token of each row.

        Parameters
        ----------
        ids
            [B] or [B, 1] token ids.

        Returns
        -------
        Tensor
            [B, V] logits of the token that follows; the next step may write over them.

        Raises
        ------
        ValueError
            For another number of tokens than the cache has rows.
        """
        cache = self.cache
        if ids.numel() != cache.rows:
            raise ValueError(f"a step takes a token of each row, so {cache.rows} of them, got ids {list(ids.shape)}")
        tokens = [cache.ragged[0].core.tokens(row) for row in range(cache.rows)]
        if len(self._ids) != cache.rows:
            self._ids, self._positions = (
                torch.zeros(cache.rows, 1, dtype=torch.long, device=self._device) for _ in range(2)
            )
            self._tokens = []
            self._graphs.clear()  # they read the former ones
        if tokens != self._tokens:
            self._positions.copy_(torch.tensor(tokens)[:, None])
        self._ids.copy_(ids.reshape(-1, 1))
        with using(self.model), torch.no_grad():
            logits = self._pass()
        self._tokens = [n + 1 for n in tokens]
        return logits

    def _pass(self) -> torch.Tensor:
        key = prepare(self.cache)
        if key is None or key.cut not in self._warm:
            logits = self._forward()
            if key is not None:
                self._warm.add(key.cut)
            return logits
        if any(stale.layers != key.layers for _, (stale, _) in self._graphs.values()):
            self._graphs.clear()  # of layers that the cache no longer has
        if key.cut in self._graphs:
            graph, (captured, logits) = self._graphs[key.cut]
            if captured == key:
                graph.replay()
                self.cache.count_replay()
                self.replays += 1
                return logits
        self.cache.capturing = True
        try:
            graph, (_, logits) = self._graphs.capture(key.cut, lambda: (key, self._forward()))
        except BaseException as error:
            self.cache.step.close(error)  # the host has counted what never ran
            raise
        finally:
            self.cache.capturing = False
        self.cache.ragged[0].core.tokens(0)  # pools leave the capture's stream for the one that replays are on
        graph.replay()
        self.captures += 1
        return logits

    def _forward(self) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            input_ids=self._ids, position_ids=self._positions, **cache_argument(self.cache), use_cache=True,
        ).logits[:, -1]  # fmt: skip
        self._positions.add_(1)
        return logits
