"""What a layer must hold, as plain lists: slots, positions, whose pages are shared, queries; attention in float64."""

from __future__ import annotations

import numpy as np
import oracle
from layers import PAGE, pages_for
from oracle_statistics import Slot

NEW = Slot(0.0, 0, 0)


class Page:
    """Heads that share it count as its owners."""

    def __init__(self):
        self.owners = 1


class Head:
    def __init__(self):
        self.positions: list[int] = []
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.pages: list[Page] = []
        self.stats: list[Slot] = []  # what attention has gathered

    def __len__(self):
        return len(self.positions)

    def copy(self):
        other = Head()
        for name in ("positions", "keys", "values", "pages", "stats"):
            setattr(other, name, list(getattr(self, name)))
        for page in self.pages:
            page.owners += 1
        return other

    def drop_pages(self, first):
        for page in self.pages[first:]:
            page.owners -= 1
        del self.pages[first:]

    def append(self, position, key, value, stat=NEW):
        if len(self) % PAGE == 0:
            self.pages.append(Page())
        elif self.pages[-1].owners > 1:  # a shared tail is copied before it is written
            self.drop_pages(len(self.pages) - 1)
            self.pages.append(Page())
        self.positions.append(position)
        self.keys.append(key)
        self.values.append(value)
        self.stats.append(stat)

    def keep(self, stay):
        for name in ("positions", "keys", "values", "stats"):
            setattr(self, name, [getattr(self, name)[i] for i in stay])

    def crop(self, count):
        self.keep(range(len(self) - count))
        self.drop_pages(pages_for(len(self)))

    def chosen(self, scores, budget, protect, window):
        """The slots that a cut by `scores` of the older tokens keeps, ascending."""
        n, window = len(self), min(window, len(self))
        guarded = sum(p < protect for p in self.positions[: n - window])
        return [*oracle.select(scores, min(budget, n) - window, guarded), *range(n - window, n)]

    def evict(self, stay):
        """Survivors move into the head's first pages, or, where one of these is shared, into fresh ones."""
        if len(stay) == len(self):
            return
        prefix = next((i for i, s in enumerate(stay) if s != i), len(stay)) // PAGE
        shared = any(page.owners > 1 for page in self.pages[prefix : pages_for(len(stay))])
        fresh = [Page() for _ in range(pages_for(len(stay)) - prefix)] if shared else []
        self.drop_pages(prefix if shared else pages_for(len(stay)))
        self.pages += fresh
        self.keep(stay)


class Row:
    def __init__(self, heads):
        self.heads, self.tokens, self.queries = [Head() for _ in range(heads)], 0, []

    @property
    def slots(self):
        return sum(len(head) for head in self.heads)

    def copy(self):
        other = Row(0)
        other.heads, other.tokens, other.queries = [h.copy() for h in self.heads], self.tokens, list(self.queries)
        return other

    def empty(self):
        for head in self.heads:
            head.crop(len(head))
        self.tokens, self.queries = 0, []

    def can_crop(self, count):
        newest = list(range(self.tokens - count, self.tokens))
        return count <= self.tokens and all(head.positions[len(head) - count :] == newest for head in self.heads)

    def crop(self, count):
        self.tokens -= count
        self.queries = self.queries[: max(0, len(self.queries) - count)]
        for head in self.heads:
            head.crop(count)


class Layer:
    """A layer beside its model. stays: by row that is being cut, the slots of each head that stay; None: no cut."""

    def __init__(self, core, rows):
        self.core, self.rows, self.stays = core, rows, None
        self.sinks = None  # of the newest step

    def evict(self):
        for row, chosen in self.stays.items():
            for head, stay in zip(self.rows[row].heads, chosen, strict=True):
                head.evict(stay)
        self.stays = None
