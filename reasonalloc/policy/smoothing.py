"""Scores smoothed over time: an exponential moving average over the cuts that a token has seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Smoother:
    """Remembers the scores of every row, layer and head between cuts.

    weight: of the past, in [0, 1). A token met for the first time has its own score.
    """

    def __init__(self, weight: float) -> None:
        self.weight = np.float32(weight)
        self._past: dict[tuple[int, int, int], tuple[npt.NDArray[np.int32], Floats]] = {}

    def smooth(self, row: int, layer: int, head: int, positions: npt.NDArray[np.int32], scores: Floats) -> Floats:
        """positions: [n] of the scored tokens, ascending; scores: [n]."""
        result = scores
        past = self._past.get((row, layer, head))
        if past is not None:
            at = np.searchsorted(past[0], positions)
            at[at == len(past[0])] = 0
            met = past[0][at] == positions if len(past[0]) else np.zeros(len(positions), dtype=bool)
            result = scores.copy()
            result[met] = self.weight * past[1][at[met]] + (1 - self.weight) * scores[met]
        self._past[row, layer, head] = positions.copy(), result
        return result

    def __deepcopy__(self, memo: dict[int, object]) -> Smoother:
        twin = Smoother(float(self.weight))
        twin._past = dict(self._past)  # arrays are replaced, never written to
        return twin

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All that it remembers. places: [n, 3] row, layer, head; counts: [n]; positions, scores: [sum of counts]."""
        past = list(self._past.values())
        return {
            "places": np.array(list(self._past), np.int64).reshape(-1, 3),
            "counts": np.array([len(p) for p, _ in past], np.int64),
            "positions": np.concatenate([np.zeros(0, np.int32), *(p for p, _ in past)]),
            "scores": np.concatenate([np.zeros(0, np.float32), *(s for _, s in past)]),
        }

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Remembers what `arrays` gave."""
        ends = np.cumsum(arrays["counts"])[:-1]
        positions, scores = np.split(arrays["positions"], ends), np.split(arrays["scores"], ends)
        places = [(int(row), int(layer), int(head)) for row, layer, head in arrays["places"]]
        self._past = dict(zip(places, zip(positions, scores, strict=True), strict=True)) if places else {}

    def move_rows(self, source: npt.NDArray[np.int64]) -> None:
        """Row i becomes row source[i]."""
        own: dict[int, list[tuple[int, int]]] = {}
        for row, layer, head in self._past:
            own.setdefault(row, []).append((layer, head))
        self._past = {
            (i, layer, head): self._past[int(row), layer, head]
            for i, row in enumerate(source)
            for layer, head in own.get(int(row), [])
        }

    def forget_from(self, position: npt.NDArray[np.int64]) -> None:
        """After a crop: positions of a row from position[row] on will be other tokens."""
        for key, (positions, scores) in self._past.items():
            stays = positions < position[key[0]]
            self._past[key] = positions[stays], scores[stays]
