"""The scorer "spans": scores by definition, spans go whole, in batches as alone; its settings."""

from __future__ import annotations

import models
import numpy as np
import oracle
import oracle_spans
import pytest
import torch
from layers import cut, positions, read, scores_by_head, step, tokens
from test_methods import config_of, run

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.policy.scorers import CentredRKV
from reasonalloc.policy.spans import Spans

pytestmark = pytest.mark.core

HEADS, GROUP, DIM, WINDOW = 2, 3, 20, 4
SHAPE = (1, HEADS, GROUP, DIM)
EVEN = (0, 0.5, 0.25, 2.0, 0.25, 0.2)


def fed(dtype="float32", n=90, seed=0):
    pool = _core.Pool(dtype, DIM)
    layer = _core.Layer(pool, 1, HEADS, HEADS * GROUP, WINDOW, "spans")
    step(pool, layer, *tokens(SHAPE, n, seed=seed))
    return pool, layer


def scores_of(layer, arguments):
    return scores_by_head(layer, 0, arguments, HEADS, WINDOW)


def expected(layer, head, part):
    """In float64 from the definitions; None where the rounding of a cosine decides."""
    count, raw = layer.queries(0)
    queries = np.frombuffer(raw, np.float32).reshape(HEADS * GROUP, count, DIM)[head * GROUP : (head + 1) * GROUP]
    keys, where = read(layer, 0, head, DIM, False), positions(layer, 0, head)
    if oracle.redundancy_margin(keys, part.threshold) < 1e-5:
        return None
    rkv = oracle.rkv(queries, keys, part.alpha, part.threshold, part.kernel) + (1 - part.alpha) / len(keys)
    return oracle_spans.shared(rkv, where, part.span, part.pool == "mean")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_scores_by_definition(isa, dtype, pool):
    """Cut after cut, of spans that are held in part, for spans of one token, some, and more than there are."""
    compared = 0
    for span in (1, 7, 16, 1000):
        part = Spans(span=span, pool=pool, alpha=0.4)
        memory, layer = fed(dtype)
        for total in (130, 96, 71):
            for head, got in enumerate(scores_of(layer, part.arguments(0))):
                if (want := expected(layer, head, part)) is not None:
                    np.testing.assert_allclose(got, want, atol=3e-6)
                    compared += 1
            cut(memory, layer, HEADS, [total], score=part.arguments(0), route=EVEN)
            step(memory, layer, *tokens(SHAPE, 9, seed=total + span))
    assert compared > 12


def test_spans_go_whole():
    """All but one span a head, of which the newest tokens stay."""
    memory, layer = fed(n=120)
    arguments, partly = Spans(span=8).arguments(0), 0
    for total in (160, 150, 141, 120):
        before = [positions(layer, 0, h).copy() for h in range(HEADS)]
        cut(memory, layer, HEADS, [total], score=arguments, route=EVEN)
        for head, old in enumerate(before):
            kept, cuts = positions(layer, 0, head), 0
            older = old[:-WINDOW]
            for number in np.unique(older // 8):
                own = older[older // 8 == number]
                stays = np.isin(own, kept)
                if stays.any() and not stays.all():
                    cuts += 1
                    assert (np.diff(stays.astype(int)) >= 0).all()  # the newest of it
            assert cuts <= 1
            partly += cuts
        step(memory, layer, *tokens(SHAPE, 5, seed=total))
    assert partly


def test_spans_of_one_token_are_the_centred_score():
    ours, theirs = (scores_of(fed()[1], x.arguments(0)) for x in (Spans(span=1), CentredRKV()))
    assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_rows_forks_and_chunks():
    """A row is cut as it is alone, padded or not; a fork goes on as the original; a prompt in chunks counts as one."""
    model, options = models.tiny(), {"options": {"span": 5}}
    long, short = models.prompt(40, seed=1), models.prompt(31, seed=2)
    batch = torch.cat([long, torch.cat([torch.zeros(1, 9, dtype=torch.long), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :9] = 0

    def decoded(ids, mask, chunks=None):
        cache = ra.ReasonAllocCache(model, config_of("spans", **options))
        if chunks:
            for part in ids.split(chunks, 1):
                models.step(model, cache, part)
        else:
            with torch.no_grad():
                model(ids, attention_mask=mask, past_key_values=cache)
        for i in range(20):
            mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], 1)
            new = models.prompt(1, seed=50 + i).expand(len(ids), 1)
            with torch.no_grad():
                model(new, attention_mask=mask, past_key_values=cache)
        return cache

    both = decoded(batch, mask)
    for row, ids in enumerate((long, short)):
        alone = decoded(ids, torch.ones_like(ids))
        for layer in alone.stats()["layers"]:
            assert [x.tolist() for x in both.positions(layer, row)] == [x.tolist() for x in alone.positions(layer, 0)]
    whole, chunked = decoded(long, torch.ones_like(long)), decoded(long, torch.ones_like(long), chunks=10)
    assert whole.stats()["evicted"]
    both.batch_repeat_interleave(2)
    for layer in whole.stats()["layers"]:
        assert [x.tolist() for x in both.positions(layer, 0)] == [x.tolist() for x in both.positions(layer, 1)]
        assert all(
            len(a) == len(b) for a, b in zip(whole.positions(layer, 0), chunked.positions(layer, 0), strict=True)
        )


def test_settings():
    config = ra.Config(method="spans", budget=64, alpha=0.3, options={"span": 8, "pool": "max"})
    assert config.policy().scorer == Spans(alpha=0.3, span=8, pool="max")
    assert config.policy().scorer.arguments(0).average is False
    for options, message in (
        ({"span": 0}, "span must lie between 1 and"),
        ({"span": 2.5}, "span must be a whole number"),
        ({"pool": "median"}, "pool must be one of 'mean', 'max'"),
        ({"sentence": 3}, "no option 'sentence'"),
    ):
        with pytest.raises(ValueError, match=message):
            ra.Config(method="spans", budget=64, options=options)
    with pytest.raises(ValueError, match="out of range"):
        _core.score_dense(*(np.zeros(8, np.float32), 1, 1, np.zeros(16, np.float32), 2, 8), Spans().arguments(0),
                          np.zeros(1, np.float32), np.zeros(1, np.float32), np.zeros(2, np.float32))  # fmt: skip


def test_another_span_keeps_others():
    """What stays depends on the span, and how much does not."""
    found = [run(models.tiny(), config_of("spans", options={"span": n}))[1] for n in (1, 4, 16)]
    lengths = [[[[len(p) for p in heads] for heads in step] for step in kept] for kept in found]
    assert lengths[0] == lengths[1] == lengths[2] and found[0] != found[1] != found[2]
