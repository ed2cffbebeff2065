"""Memory that one compression needs beside the cache, by the rise of the peak of resident memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from reasonalloc.lab.bench import rkv_repo
from reasonalloc.lab.bench.compression import Ours, Peer, repository_form
from reasonalloc.lab.bench.reference import rkv_compress
from reasonalloc.lab.bench.resident import in_fresh_process, rise
from reasonalloc.lab.bench.results import ScratchRow
from reasonalloc.lab.bench.settings import INTERVAL
from reasonalloc.lab.bench.states import uncorrelated


def measure(
    who: str, n: int, dtype: str, clone: str | None, heads: int, group: int, head_dim: int
) -> dict[str, dict[str, int]]:
    """Rises during the first cut and a later one. Run it in a process of its own.

    After the first, what is remembered for the next cut counts as kept; the tokens fed in between do not count.
    """
    torch.set_num_threads(1)
    states = uncorrelated(heads, group, n + INTERVAL, head_dim)
    cutter: Ours | Peer
    if who == "ours":
        cutter = Ours(states, n, getattr(torch, dtype))
    else:
        form = rkv_compress if clone is None else repository_form(rkv_repo.load(clone))
        cutter = Peer(states, n, getattr(torch, dtype), form)
    small = 2 * INTERVAL  # loads code and starts pools, so that they do not count
    warm = Ours(states, small, cutter.dtype) if isinstance(cutter, Ours) else Peer(states, small, cutter.dtype, form)
    warm.feed(small)
    warm.compress()
    del warm
    cutter.feed(n)
    first = rise(cutter.compress)
    cutter.feed(INTERVAL)
    return {"first": first, "later": rise(cutter.compress)}


def rows(
    sizes: Sequence[int], dtypes: Sequence[torch.dtype], clone: str | None, heads: int, group: int, head_dim: int
) -> Iterator[ScratchRow]:
    """Each cut in a fresh process: ours, the published form and, if a clone is given, its code."""
    who = {"ours": None, "published form": None} | ({"R-KV repository": clone} if clone else {})
    for dtype in dtypes:
        for n in sizes:
            name = str(dtype)[6:]
            found = {
                each: in_fresh_process(
                    measure, who=each, n=n, dtype=name, clone=path, heads=heads, group=group, head_dim=head_dim
                )
                for each, path in who.items()
            }
            yield {"n": n, "dtype": name, "bytes": found}
