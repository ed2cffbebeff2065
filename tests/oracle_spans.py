"""Scores shared by spans, from the definition."""

import numpy as np


def shared(scores, positions, span, average):
    """scores [n] of tokens at `positions`: for each the mean or largest score of those in its span."""
    scores, number = np.asarray(scores, np.float64), np.asarray(positions)[: len(scores)] // span
    pool = np.mean if average else np.max
    return np.array([pool(scores[number == x]) for x in number])
