"""Slots spent on dead branches: counts against a plain recount, and the eviction that is told what is dead."""

from dataclasses import replace

import models
import numpy as np
import pytest

import reasonalloc as ra
from reasonalloc.lab.evaluate.branches import ALIVE, Chain, chain_of, spent, spent_all
from reasonalloc.lab.tasks import items
from reasonalloc.lab.tasks.search import deaths
from reasonalloc.policy.scorers import SCORERS

PROMPT, TOKENS = 8, 64
CONFIG = ra.Config(method="rkv", budget=40, interval=8, window=4)


@pytest.fixture
def chain():
    """Positions 8 to 47 die once 48 tokens are there; 32 of 72 live."""
    ids = models.prompt(PROMPT + TOKENS)[0]
    ends = np.full(PROMPT + TOKENS, ALIVE)
    ends[8:48] = 48
    return Chain("one", ids[:PROMPT], ids[PROMPT:], ends)


def test_counts_are_those_of_all_cuts(chain):
    model, shown = models.tiny(), []
    (found,) = spent(model, [chain], CONFIG, "rkv")
    cache = ra.ReasonAllocCache(
        model, CONFIG, observers=[lambda cut: shown.append((cut.tokens, [k.copy() for k in cut.kept], cut.evicted))]
    )
    for ids in (chain.prompt, *chain.ids[:-1].split(1)):  # what the last one predicts is not asked
        models.step(model, cache, ids[None])
    old = [(n, p) for n, kept, _ in shown for head in kept for p in head if p < n - 4]
    gone = [(n, p) for n, _, went in shown for head in went for p in head]
    assert found.dead == pytest.approx(np.mean([chain.ends[p] <= n for n, p in old]))
    assert found.alive == pytest.approx(np.mean([chain.ends[p] > n for n, p in gone]))
    assert 0 < found.dead < 1 and 0 < found.alive < 1


def test_what_is_told_evicts_nothing_that_lives(chain):
    rkv, oracle = spent_all(models.tiny(), [chain], [("rkv", CONFIG)], CONFIG)
    assert (rkv.name, oracle.name) == ("rkv", "oracle")
    assert oracle.dead < rkv.dead and oracle.alive < rkv.alive
    assert rkv.nll > 0 and np.isfinite(oracle.nll)
    names = set(SCORERS.classes)
    assert not any("live" in name.lower() for name in names)  # it is nobody's method


@pytest.mark.parametrize("oracle", [False, True])
def test_a_chain_in_a_batch_is_the_chain_alone(chain, oracle):
    short = Chain("two", chain.prompt[2:], chain.ids[10:60], chain.ends[12:68])
    short = replace(short, ends=np.where(short.ends == ALIVE, ALIVE, short.ends - 12))
    together = spent(models.tiny(), [chain, short], CONFIG, "rkv", oracle=oracle)
    for own, found in zip((chain, short), together, strict=True):
        (alone,) = spent(models.tiny(), [own], CONFIG, "rkv", oracle=oracle)
        assert (found.id, found.dead, found.alive) == (alone.id, alone.dead, alone.alive)
        assert found.nll == pytest.approx(alone.nll, rel=1e-4)


def test_a_full_cache_has_no_cuts(chain):
    (found,) = spent(models.tiny(), [chain], ra.Config(method="full"), "full")
    assert np.isnan(found.dead) and np.isnan(found.alive) and found.nll > 0


@pytest.mark.slow
def test_tokens_die_with_their_lines():
    _, tokenizer = ra.load("smollm2")
    item = items("search", count=1, settings=["numbers=8,lines=10-20"])[0]
    chain = chain_of(item, tokenizer)
    assert tokenizer.decode(chain.ids) == item.chain
    words = [tokenizer.decode([x]) for x in chain.ids]
    lines = item.chain.splitlines(keepends=True)
    at, line_of = 0, []
    for word in words:
        line_of.append(sum(at >= len("".join(lines[: i + 1])) for i in range(len(lines))))
        at += len(word)
    for end, line in zip(chain.ends[len(chain.prompt) :], line_of, strict=True):
        death = deaths(lines)[line]
        if death >= len(lines):
            assert end == ALIVE
        else:
            assert end == len(chain.prompt) + sum(x < death for x in line_of)
    assert (chain.ends[: len(chain.prompt)] == ALIVE).all()
    with pytest.raises(ValueError, match="has no worked chain"):
        chain_of(items("math500", count=1)[0], tokenizer)
