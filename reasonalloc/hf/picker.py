"""The next token of each row of a batch: greedy, or sampled with a temperature and top-p."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import torch

LIKELY = 128  # tokens of a row among which top-p nearly always ends; sorting a whole vocabulary costs more than a step


class Picker:
    """A row's choice depends on its logits and (seed, key, step) alone. temperature 0: the most likely token."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p, self.seed = float(temperature), float(top_p), seed

    def numbers(self, key: str) -> random.Random:
        """The random numbers of a row."""
        return random.Random(hashlib.sha256(f"{self.seed}/{key}".encode()).digest())

    def pick(self, logits: torch.Tensor, numbers: Sequence[random.Random]) -> list[int]:
        """logits: [rows, V]."""
        logits = logits.float()
        if not self.temperature:
            return logits.argmax(-1).tolist()
        logits = logits / self.temperature
        draws = torch.tensor([[x.random()] for x in numbers], dtype=torch.float64, device=logits.device)
        if self.top_p == 1:
            return _drawn(logits, draws)[:, 0].tolist()
        likely = min(LIKELY, logits.shape[1])
        picked, whole = _from_nucleus(logits, draws, self.top_p, likely)
        found: list[int]
        found, enough = torch.cat([picked, whole.long()], 1).T.tolist()  # waits for the device once
        flat = [row for row, there in enumerate(enough) if not there]
        if flat:
            again, _ = _from_nucleus(logits[flat], draws[flat], self.top_p, logits.shape[1])
            for row, token in zip(flat, again[:, 0].tolist(), strict=True):
                found[row] = token
        return found


def _from_nucleus(
    logits: torch.Tensor, draws: torch.Tensor, top_p: float, likely: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token [rows, 1] of the most likely ones that have top_p of the probability together, which are looked for among
    `likely`; whether they lie in there [rows, 1]."""
    top, ids = logits.topk(likely)
    share = (top - logits.logsumexp(-1, keepdim=True)).exp()
    needed = share.cumsum(-1) - share < top_p
    least = top.masked_fill(~needed, torch.inf).amin(-1, keepdim=True)  # equal ones all stay: they have no order
    outside = top < least
    whole = outside[:, -1:] | (likely == logits.shape[1])
    ids, order = ids.sort(-1)  # a draw goes through the vocabulary in its own order, however many are looked at
    kept = top.masked_fill(outside, -torch.inf).gather(-1, order)
    return ids.gather(-1, _drawn(kept, draws)), whole


def _drawn(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """[rows, 1] where the share `draws` [rows, 1] of a row's probability is passed."""
    total = torch.softmax(logits, -1).double().cumsum(-1)
    return torch.searchsorted(total, draws * total[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
