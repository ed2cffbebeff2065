"""Masks beyond padding: honoured where attention can, against the stock cache; refused where it cannot."""

import models
import pytest
import torch
from caches import cache_of
from transformers import DynamicCache

import reasonalloc as ra
from reasonalloc.hf.compat import cache_argument


def step(model, cache, ids, mask=None, positions=None):
    with torch.no_grad():
        return model(
            input_ids=ids, **cache_argument(cache), attention_mask=mask, position_ids=positions, use_cache=True
        ).logits


def both(model):
    return DynamicCache(config=model.config), ra.ReasonAllocCache(model, ra.Config(method="full"))


def same(model, *passes):
    """Each pass's logits, with both caches."""
    stock, ours = both(model)
    for number, (ids, options) in enumerate(passes):
        want, got = step(model, stock, ids, **options), step(model, ours, ids, **options)
        real = options.get("mask")
        if real is not None and real.ndim == 2:  # what stands at padding is nobody's
            keep = real[:, -ids.shape[1] :].bool()
            want, got = want[keep], got[keep]
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, msg=f"pass {number}")
    return ours


def block_diagonal(tokens, first):
    mask = torch.ones(tokens, tokens).tril().bool()
    mask[first:, :first] = False
    return mask[None, None]


@pytest.mark.parametrize("additive", [False, True])
def test_two_documents_in_a_prefill(additive):
    model, ids = models.tiny(), models.prompt(20)
    mask = block_diagonal(20, 10)
    if additive:
        mask = torch.zeros(1, 1, 20, 20).masked_fill(~mask, torch.finfo(torch.float32).min)
    ours = same(model, (ids, {"mask": mask}), (models.prompt(1), {"positions": torch.tensor([[20]])}))
    assert ours.stats()["slots"][0][0] == [21, 21]  # no token is taken for padding


def test_a_mask_is_of_its_own_pass():
    """Not of one before it that had no cache of ours."""
    model, ids, hide = models.tiny(), models.prompt(20), torch.ones(1, 20, dtype=torch.long)
    hide[0, :5] = 0
    cache = ra.ReasonAllocCache(model, ra.Config(method="full"))
    with torch.no_grad():
        model(ids, attention_mask=hide, use_cache=False)
    step(model, cache, ids, block_diagonal(20, 10))
    assert cache.stats()["slots"][0][0] == [20, 20]


def test_tokens_hidden_later():
    model = models.tiny()
    hide = torch.ones(2, 25, dtype=torch.long)
    hide[0, 3:8], hide[1, 20:22] = 0, 0
    places = torch.arange(20, 24).expand(2, 4)
    same(
        model,
        (models.prompt(20, rows=2), {}),
        (models.prompt(4, rows=2, seed=1), {"mask": hide[:, :24], "positions": places}),
        (models.prompt(1, rows=2, seed=2), {"mask": hide, "positions": torch.tensor([[24], [24]])}),
        (models.prompt(1, rows=2, seed=3), {"mask": torch.nn.functional.pad(hide, (0, 1), value=1)}),
    )


def test_hidden_beside_padding():
    """Columns are counted with padding, positions without."""
    model = models.tiny()
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :6] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    later = torch.nn.functional.pad(mask, (0, 3), value=1)
    later[0, 9:12], later[1, :2] = 0, 0
    next_places = places[:, -1:] + torch.arange(1, 4)
    same(
        model,
        (models.prompt(20, rows=2), {"mask": mask, "positions": places}),
        (models.prompt(3, rows=2, seed=1), {"mask": later, "positions": next_places}),
    )


def test_a_pattern_among_new_tokens():
    """[B, 1, T, T] over the new tokens of a later pass: each sees itself and what is cached."""
    model = models.tiny()
    stock, ours = both(model)
    ids, more = models.prompt(12), models.prompt(4, seed=1)
    for cache in (stock, ours):
        step(model, cache, ids)
    alone = torch.eye(4).bool()[None, None]
    want = step(model, stock, more, torch.cat([torch.ones(1, 1, 4, 12).bool(), alone], -1), torch.full((1, 4), 12))
    got = step(model, ours, more, alone, torch.full((1, 4), 12))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_hidden_tokens_are_not_seen_after_cuts():
    """What a head still has of them stays hidden: of 60 tokens the newest 4 are shown, which every head holds."""
    model, ids = models.tiny(), models.prompt(60)
    cache, stock = cache_of(model), DynamicCache(config=model.config)
    cache.prompt_columns = 60
    mask = torch.ones(1, 61, dtype=torch.long)
    mask[0, :56] = 0
    for each in (cache, stock):
        step(model, each, ids)
    assert all(len(p) == 24 for p in cache.positions(0))
    got, want = (step(model, x, models.prompt(1, seed=1), mask, torch.tensor([[60]])) for x in (cache, stock))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 21, dtype=torch.long), r"shows column 0 of row 0, which was padding when it was given"),
        (torch.ones(2, 1, 1, 21).bool(), "masks \\[batch, 1, new, all\\] over cached tokens are not supported"),
        (torch.ones(2, 4, 1, 1).bool(), "another one for each head"),
    ],
)
def test_what_is_refused(mask, message):
    model = models.tiny()
    cache = cache_of(model)
    first = torch.ones(2, 20, dtype=torch.long)
    first[0, :5] = 0
    step(model, cache, models.prompt(20, rows=2), first)
    before = [p.tolist() for r in (0, 1) for p in cache.positions(0, r)]
    with pytest.raises(ValueError, match=message):
        step(model, cache, models.prompt(1, rows=2), mask)
    assert [p.tolist() for r in (0, 1) for p in cache.positions(0, r)] == before
    assert cache.stats()["closed"] is None
    right = torch.nn.functional.pad(first, (0, 1), value=1)
    assert step(model, cache, models.prompt(1, rows=2), right).isfinite().all()


def test_later_tokens_are_not_shown():
    model = models.tiny()
    cache = cache_of(model)
    step(model, cache, models.prompt(12))
    with pytest.raises(ValueError, match="may not show tokens that come later"):
        step(model, cache, models.prompt(3), torch.ones(1, 1, 3, 3).bool())
    assert cache.get_seq_length() == 12 and cache.stats()["closed"] is None
