"""Choosing tokens: transformers' warpers beside it, and its distribution."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from reasonalloc.hf.picker import LIKELY, Picker


def by_transformers(logits, temperature, top_p, draws):
    """The token at which a draw passes the probability that transformers' warpers leave."""
    logits = TemperatureLogitsWarper(temperature)(None, logits)
    left = torch.softmax(TopPLogitsWarper(top_p)(None, logits).double(), -1).cumsum(-1)
    return torch.searchsorted(left, draws * left[:, -1:], right=True)[:, 0].tolist()


@pytest.mark.parametrize("spread", [12.0, 3.0, 0.1])  # a token or two; some dozens; more than are looked at first
@pytest.mark.parametrize("size", [40, 1000])
@pytest.mark.parametrize("top_p", [0.3, 0.95])
def test_top_p_is_that_of_transformers(spread, size, top_p):
    rows, picker = 64, Picker(0.6, top_p, 3)
    logits = spread * torch.randn(rows, size, generator=torch.Generator().manual_seed(1))
    draws = torch.tensor([[picker.numbers(str(row)).random()] for row in range(rows)], dtype=torch.float64)
    expected = by_transformers(logits, 0.6, top_p, draws)
    assert picker.pick(logits, [picker.numbers(str(row)) for row in range(rows)]) == expected
    if spread < 1 and size > LIKELY and top_p > 0.5:
        kept = TopPLogitsWarper(top_p)(None, logits / 0.6).isfinite().sum(-1)
        assert kept.min() > LIKELY  # the second look was needed


def test_equal_logits_at_the_edge_all_stay():
    """bfloat16 has many; which of them transformers' sort takes depends on how it sorts."""
    rows, picker = 128, Picker(0.6, 0.95, 3)
    logits = (3 * torch.randn(rows, 4096, generator=torch.Generator().manual_seed(1))).bfloat16()
    left = TopPLogitsWarper(0.95)(None, logits.float() / 0.6)
    least = left.masked_fill(left.isinf(), torch.inf).amin(-1, keepdim=True)
    kept = (logits.float() / 0.6).masked_fill(logits.float() / 0.6 < least, -torch.inf)
    assert (kept.isfinite().sum(-1) > left.isfinite().sum(-1)).any()
    total = torch.softmax(kept.double(), -1).cumsum(-1)
    draws = torch.tensor([[picker.numbers(str(row)).random()] for row in range(rows)], dtype=torch.float64)
    expected = torch.searchsorted(total, draws * total[:, -1:], right=True)[:, 0].tolist()
    assert picker.pick(logits, [picker.numbers(str(row)) for row in range(rows)]) == expected


def test_a_row_alone_among_rows_that_need_a_second_look():
    picker = Picker(1.0, 0.9, 0)
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(2)) * torch.tensor([[9.0], [0.1]] * 4)[:8]
    together = picker.pick(logits, [picker.numbers(str(row)) for row in range(8)])
    alone = [picker.pick(logits[row : row + 1], [picker.numbers(str(row))])[0] for row in range(8)]
    assert together == alone


@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_the_distribution(top_p):
    picker = Picker(1.0, top_p, 0)
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log()
    numbers = [picker.numbers("x")]
    drawn = torch.tensor([picker.pick(logits, numbers)[0] for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.03)
