"""Models whose KV heads are no longer shared: the same function, and a head for each query head."""

import copy

import models
import pytest
import torch

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint as shape_of
from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.evaluate import expected
from reasonalloc.lab.models import fingerprint, load, missing_for_embedded, shape
from reasonalloc.lab.ungrouped import split, ungroup


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_the_same_function(kind):
    model = models.build(kind)
    apart = ungroup(copy.deepcopy(model))
    query_heads = model.config.num_attention_heads
    assert model.config.num_key_value_heads < query_heads == apart.config.num_key_value_heads
    ids = models.prompt(40)
    with torch.no_grad():
        torch.testing.assert_close(apart(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    cache = ra.ReasonAllocCache(apart, ra.Config(method="full"))
    with torch.no_grad():
        torch.testing.assert_close(apart(ids, **cache_argument(cache)).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert {layer.heads for layer in cache.ragged} == {query_heads}


def test_even_heads_keep_what_a_grouped_head_keeps():
    model = models.build("llama")
    apart = ungroup(copy.deepcopy(model))
    kept = []
    for each in (model, apart):
        cache = ra.ReasonAllocCache(each, ra.Config(method="streaming", budget=24))
        for i in range(50):
            models.step(each, cache, models.prompt(30 if i == 0 else 1, seed=i))
        kept.append(cache.positions(0, 0)[0].tolist())
    assert kept[0] == kept[1]


def test_what_cannot_be_ungrouped():
    model = models.build("phi3")  # one projection for queries, keys and values
    before = [p.shape for p in model.parameters()]
    with pytest.raises(ValueError, match="has no plain k_proj"):
        ungroup(model)
    assert [p.shape for p in model.parameters()] == before


def test_names():
    assert split("ledger-135m:ungrouped") == ("ledger-135m", True) and split(None) == (None, False)
    assert fingerprint("ledger-135m:ungrouped") == fingerprint("ledger-135m")
    assert expected.scores("ledger-135m:ungrouped", "ledger", ["plain"]) == expected.scores(
        "ledger-135m", "ledger", ["plain"]
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_for_embedded()), reason="the embedded model is not installed")
def test_the_embedded_model():
    model, tokenizer, label = load("smollm2:ungrouped")
    other, _, _ = load("smollm2")
    assert label == "SmolLM2-135M-Instruct:ungrouped" and model.config.num_key_value_heads == 9
    assert shape("smollm2:ungrouped") == shape_of(model)
    ids = tokenizer("Nine heads instead of three.", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, other(ids).logits, rtol=1e-4, atol=1e-3)
