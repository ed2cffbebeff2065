"""Row clocks: a row is cut where it is cut alone, whatever its neighbours are."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reasonalloc.policy.clock import Clocks


class Row:
    """Counts of a row's own tokens at which it was cut."""

    def __init__(self):
        self.count, self.cuts = 0, []


def rows_of(flags):
    return [] if flags is None else np.flatnonzero(flags).tolist()


def run(lengths, chunk, decoded, interval, turns=(), whole_prompts=False, last=False):
    """Feeds left-padded prompts in chunks, decodes, then feeds turns [rows] that are padded likewise, and decodes."""
    rows = [Row() for _ in lengths]
    clocks = Clocks(len(lengths), interval, whole_prompts)

    def cut(flags):
        for i in rows_of(flags):
            rows[i].cuts.append(rows[i].count)

    def feed(fresh, width, last=False, goes_on=False):
        if not goes_on:  # the prompt, as is known
            cut(clocks.ended(width))
        for segment in clocks.plan(np.array(fresh), width, last):
            for row, n in zip(rows, segment.tokens, strict=True):
                row.count += int(n)
            cut(segment.due)
            assert segment.any_due == segment.due.any()
            assert (segment.cut_in[segment.due] == 0).all()

    for number, prompts in enumerate([lengths, *turns]):
        longest = max(prompts)
        width = longest if number or not chunk else chunk
        for begin in range(0, longest, width):
            end = min(begin + width, longest)
            fresh = [max(0, min(end - (longest - n), n)) - max(0, min(begin - (longest - n), n)) for n in prompts]
            known = last and not number
            feed(fresh, end - begin, known and end == longest, known and begin > 0)
        for _ in range(decoded):
            feed([1] * len(lengths), 1)
    cut(clocks.settle())
    return [(row.count, row.cuts) for row in rows]


@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=4),
    chunk=st.sampled_from([0, 2, 7, 16, 64]),
    decoded=st.integers(1, 40),
    interval=st.integers(1, 30),
    turn=st.lists(st.integers(2, 20), min_size=4, max_size=4),
    whole_prompts=st.booleans(),
    last=st.booleans(),
)
@example([5, 40, 17], 7, 30, 8, [2, 2, 2, 2], False, True)  # the first ends in the first of the last chunk's segments
def test_a_row_is_cut_as_it_is_alone(lengths, chunk, decoded, interval, turn, whole_prompts, last):
    # A last chunk of one token looks like decoding where the length is not known; the row alone ends its prompt before.
    if chunk and not last and any(n % chunk == 1 for n in [*lengths, max(lengths)]):
        return
    together = run(lengths, chunk, decoded, interval, [turn[: len(lengths)]], whole_prompts, last)
    for row, (n, t) in enumerate(zip(lengths, turn, strict=False)):
        assert run([n], chunk, decoded, interval, [[t]], whole_prompts, last) == [together[row]], (row, n)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4), interval=st.integers(1, 30))
def test_without_chunks_rows_are_cut_after_the_prompt_and_at_every_interval(lengths, interval):
    for last in (False, True):
        for length, (count, cuts) in zip(lengths, run(lengths, 0, 50, interval, last=last), strict=True):
            assert count == length + 50
            assert cuts == list(range(length, length + 51, interval))


def test_known_ends_are_cut_at_once():
    clocks = Clocks(2, 8)
    (segment,) = clocks.plan(np.array([5, 20]), 20, last=True)
    assert segment.due.tolist() == [True, True]
    assert not rows_of(clocks.ended(1))


def test_ends_that_show_later():
    clocks = Clocks(2, 8)
    (segment,) = clocks.plan(np.array([5, 20]), 20)
    assert segment.due.tolist() == [False, True]  # the first may be amid a prompt of several chunks
    assert rows_of(clocks.ended(1)) == [0]


def test_chunks_are_cut_within_a_pass():
    """A prompt of 20 tokens behind 12 of padding, in chunks of 16: 4 tokens, then 12 and 4 more."""
    clocks = Clocks(1, 8)
    (first,) = clocks.plan(np.array([4]), 16)
    assert not first.due.any()
    assert not rows_of(clocks.ended(16))
    second, third = clocks.plan(np.array([16]), 16)
    assert (second.tokens[0], second.due[0], third.tokens[0], third.due[0]) == (12, True, 4, False)


def test_the_count_down_says_when():
    clocks = Clocks(1, 4)
    clocks.plan(np.array([6]), 6)
    announced = []
    for _ in range(9):
        assert not rows_of(clocks.ended(1))
        announced.append(int(clocks.plan(np.array([1]), 1)[0].cut_in[0]))
    assert announced == [3, 2, 1, 0, 3, 2, 1, 0, 3]


@pytest.mark.parametrize("removed", [0, 2])
def test_crop_and_rows(removed):
    clocks = Clocks(2, 4)
    clocks.plan(np.array([3, 6]), 6)
    clocks.ended(1)
    clocks.plan(np.array([3, 3]), 3)
    clocks.crop(np.array([removed, removed]))
    assert clocks.since.tolist() == [3 - removed] * 2
    clocks.move_rows(np.array([1, 1, 0]))
    assert len(clocks.since) == 3
    twin = clocks.copy()
    twin.plan(np.array([1, 1, 1]), 1)
    assert clocks.since.tolist() == [3 - removed] * 3
