"""Searches written while an oracle says which lines are dead."""

import numpy as np
import pytest

import reasonalloc as ra
from reasonalloc.hf.decode import Sampling
from reasonalloc.lab.evaluate.branches import ALIVE, ends_of
from reasonalloc.lab.evaluate.oracle import Written, answer_with_oracle
from reasonalloc.lab.models import REASONERS
from reasonalloc.lab.tasks import items


class Letters:
    """A token is a character."""

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_ends_are_of_what_a_row_has_written_so_far():
    one, two = (x.chain for x in items("search", count=2, settings=["short"]))
    written = Written(Letters(), {"one": 3, "two": 5})
    for n, (a, b) in enumerate(zip(one, two, strict=False), 1):
        written.watch(None, ["one", "two"], [ord(a), ord(b)])
        if n % 41 == 0:
            assert (written.ends(0) == ends_of(3, one[:n], np.arange(n))).all()
            assert (written.ends(1) == ends_of(5, two[:n], np.arange(n))).all()
    assert (written.ends(0) < ALIVE).any() and (written.ends(0)[:3] == ALIVE).all()
    before = written.ends(1)
    written.move_rows(np.array([1]))
    assert (written.ends(0) == before).all()
    written.watch(None, ["two"], [ord("x")])
    assert len(written.ends(0)) == len(before) + 1


@pytest.mark.slow
def test_answers_within_a_budget_that_evicts():
    model, tokenizer = ra.load(REASONERS["search"])
    asked = items("search", count=2, settings=["numbers=8,lines=10-20"])
    config = ra.Config(method="rkv", budget=224, interval=16, keep_prompt=True)
    found = answer_with_oracle(model, tokenizer, asked, config, Sampling(max_new_tokens=320))
    assert [x.id for x in found] == [x.id for x in asked]
    assert all(x.finish == "stop" and all(x.right) and x.tokens + 80 > 224 for x in found)
