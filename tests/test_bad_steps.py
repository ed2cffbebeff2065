"""Steps that a cache cannot take: a clear error, and a cache that is as it was or says that it is closed."""

from dataclasses import dataclass

import models
import numpy as np
import pytest
import torch
from caches import assert_closed, assert_works, cache_of, contents

import reasonalloc as ra

# ---- Steps that do not fit what the cache holds ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_that_changes_size(name, rows):
    model = models.tiny(name)
    cache = cache_of(model)
    models.step(model, cache, models.prompt(20, rows=2))
    before = contents(cache)
    with pytest.raises((ValueError, RuntimeError)):
        models.step(model, cache, models.prompt(1, rows=rows))
    if cache.stats()["closed"]:  # layers of another kind had taken the tokens before the first of ours saw them
        cache.reset()
        assert_works(cache, model)
    else:
        assert contents(cache) == before
        models.step(model, cache, models.prompt(1, rows=2))
        assert cache.get_seq_length() == 21


def test_the_message_of_a_batch_that_changes_size():
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(20, rows=2))
    with pytest.raises(ValueError, match=r"holds 2 rows, now is given a batch of 3; reset\(\) it first"):
        models.step(model, cache, models.prompt(1, rows=3))


def test_another_model_on_the_same_cache():
    model, other = models.tiny("llama"), models.tiny("llama-wide")
    cache = cache_of(model)
    models.step(model, cache, models.prompt(20))
    cache_of(other)
    with pytest.raises(ValueError, match="cache holds 2 heads of size 8"):
        models.step(other, cache, models.prompt(1))
    models.step(model, cache, models.prompt(1))


# ---- Numbers that are not finite -------------------------------------------------------------------------------------


@pytest.fixture
def poisoned():
    """A model with a NaN in the key projection of one layer, switched on and off by its only argument."""
    model = models.build("llama")
    good = [layer.self_attn.k_proj.weight.detach().clone() for layer in model.model.layers]

    def poison(layer=None):
        for i, weight in enumerate(good):
            with torch.no_grad():
                model.model.layers[i].self_attn.k_proj.weight.copy_(weight)
                if i == layer:
                    model.model.layers[i].self_attn.k_proj.weight[0, 0] = float("nan")
        return model

    return poison


def test_nan_keys_in_the_first_layer(poisoned):
    model = poisoned()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    before = contents(cache)
    poisoned(layer=0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        models.step(model, cache, models.prompt(1))
    assert contents(cache) == before  # nothing had changed, so the cache is as it was
    assert cache.stats()["closed"] is None
    poisoned()
    expected = cache_of(model)
    models.step(model, expected, models.prompt(12))
    given, wanted = (models.step(model, c, models.prompt(1)) for c in (cache, expected))
    assert torch.equal(given, wanted)


@pytest.mark.parametrize("layer", [1, 2])
def test_nan_keys_in_a_later_layer(poisoned, layer):
    model = poisoned()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    poisoned(layer)
    with pytest.raises(ValueError, match="NaN or infinity"):
        models.step(model, cache, models.prompt(1))
    poisoned()
    assert_closed(cache, model, "NaN or infinity")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_nan_keys_in_the_prompt(poisoned, layer):
    model = poisoned(layer)
    cache = cache_of(model)
    with pytest.raises(ValueError, match="NaN or infinity"):
        models.step(model, cache, models.prompt(12))
    poisoned()
    if layer == 0:
        assert cache.stats()["closed"] is None
        assert_works(cache, model)
    else:
        assert_closed(cache, model, "NaN or infinity")


def scorer_of(values):
    @dataclass(frozen=True)
    class Broken(ra.Method):
        def score(self, view):
            return values(len(view.positions))

    return Broken


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda n: np.full(n, np.nan), r"scores of method 'broken' hold NaN or infinity \(layer 0, head 0\)"),
        (lambda n: torch.full((n,), torch.inf), "hold NaN or infinity"),
        (lambda n: np.where(np.arange(n) == 3, -np.inf, 0.0), "hold NaN or infinity"),
        (lambda n: np.zeros(n + 1), r"must have shape \[30\] or, without the window, \[26\], got \[31\]"),
        (lambda n: np.zeros((n, 1)), r"must have shape .* got \[30, 1\]"),
        (lambda n: 1.0, "must have shape"),
        (lambda n: "high", r"scores of method 'broken' must be numbers \(tensor, array or list\), got 'high'"),
        (lambda n: None, "must be numbers .* got 'None'"),
        (lambda n: torch.ones(n, dtype=torch.complex64), "must be numbers"),
        (lambda n: [[1.0], [1.0, 2.0]], "must be numbers"),
    ],
)
def test_scores_of_a_users_method(register, values, message):
    register("broken")(scorer_of(values))
    model = models.tiny()
    cache = cache_of(model, method="broken")
    with pytest.raises(ValueError, match=message):
        models.step(model, cache, models.prompt(30))
    # the prompt was stored before the cut, so there is no way back
    assert cache.stats()["closed"]
    with pytest.raises(RuntimeError, match=r"closed .*reset\(\)"):
        models.step(model, cache, models.prompt(1))
    cache.reset()
    assert_works(cache, model)


def test_a_users_scorer_that_raises(register):
    def fail(n):
        raise KeyError("mine")

    register("broken")(scorer_of(fail))
    model = models.tiny()
    cache = cache_of(model, method="broken")
    with pytest.raises(KeyError, match="mine"):
        models.step(model, cache, models.prompt(30))
    assert_closed(cache, model, "KeyError")


def test_a_failure_while_the_first_row_is_padding(register):
    """Another row has stored its token: there is no way back, whichever row it was."""
    calls = []

    def fail_later(n):
        calls.append(n)
        if len(calls) > 12:
            raise KeyError("mine")
        return np.zeros(n)

    register("broken")(scorer_of(fail_later))
    model = models.tiny()
    cache = cache_of(model, method="broken", interval=1)
    ids = models.prompt(30, rows=2)
    models.step(model, cache, ids, torch.ones_like(ids))
    mask = torch.ones(2, 31, dtype=torch.long)
    mask[0, -1] = 0
    with pytest.raises(KeyError, match="mine"):
        models.step(model, cache, models.prompt(1, rows=2), mask)
    assert cache.stats()["closed"]


@pytest.mark.parametrize(
    ("part", "result", "message"),
    [
        ("head_budgets", lambda total, n: [total], "head budgets of method 'broken' must be 2 whole numbers"),
        ("head_budgets", lambda total, n: [total, 1], "that sum to 48"),
        ("head_budgets", lambda total, n: [total - 3, 3], "at least 4"),
        ("head_budgets", lambda total, n: [total - 10.5, 10.5], "whole numbers"),
        ("head_budgets", lambda total, n: [np.nan, np.nan], "whole numbers"),
        ("head_budgets", lambda total, n: None, "head budgets"),
        ("layer_totals", lambda total, n: [total] * n, "layer totals of method 'broken' must be 3 whole numbers"),
        ("layer_totals", lambda total, n: [total - 8, 4, 4], "at least 8"),
        ("layer_totals", lambda total, n: [total / 2 - 4.5, total / 2 - 4.5, 9], "layer totals"),
        ("layer_totals", lambda total, n: [np.nan] * n, "layer totals"),
        ("layer_totals", lambda total, n: "many", "layer totals"),
    ],
)
def test_budgets_of_a_users_method(register, part, result, message):
    functions = {
        "head_budgets": lambda self, scores, total, config: result(total, len(scores)),
        "layer_totals": lambda self, demand, total, heads, config: result(total, len(demand)),
    }
    register("broken")(dataclass(frozen=True)(type("Broken", (ra.Method,), {part: functions[part]})))
    model = models.tiny()
    cache = cache_of(model, method="broken")
    with pytest.raises(ValueError, match=message):
        models.step(model, cache, models.prompt(30))
    if part == "layer_totals":  # checked before the first layer stores anything
        assert cache.stats()["closed"] is None
        assert cache.get_seq_length() == 0
        return
    assert cache.stats()["closed"]
    with pytest.raises(RuntimeError, match=r"closed .*reset\(\)"):
        models.step(model, cache, models.prompt(1))
    cache.reset()
    assert cache.stats()["closed"] is None


# ---- Rows, lengths and figures ---------------------------------------------------------------------------------------


def test_rows_that_do_not_exist():
    model = models.tiny()
    cache = cache_of(model)
    cache.reorder_cache(torch.tensor([5]))  # an empty cache has no rows to move
    models.step(model, cache, models.prompt(12, rows=2))
    before = contents(cache)
    for bad in ([2], [-1, 0], []):
        with pytest.raises(ValueError, match=r"row numbers must lie in 0\.\.1"):
            cache.reorder_cache(torch.tensor(bad, dtype=torch.long))
    with pytest.raises((ValueError, RuntimeError)):
        cache.batch_repeat_interleave(0)
    assert contents(cache) == before
    with pytest.raises((ValueError, IndexError)):
        cache.positions(0, 2)
    with pytest.raises(ValueError, match=r"layer 7 has no budget; those that have are \[0, 1, 2\]"):
        cache.positions(7)


def test_cropping_what_was_evicted():
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(40))  # cut from 40 to 24
    before = contents(cache)
    with pytest.raises(ValueError, match=r"what was evicted does not come back|cut to its budget"):
        cache.crop(-1)
    assert contents(cache) == before
    for i in range(3):
        models.step(model, cache, models.prompt(1, seed=i))
    cache.crop(-3)
    assert contents(cache)[:2] == before[:2]
    for i in range(3):
        models.step(model, cache, models.prompt(1, seed=i))
    before = contents(cache)
    with pytest.raises(ValueError, match="cannot crop 4"):
        cache.crop(-4)
    with pytest.raises(ValueError, match="cannot crop"):
        cache.crop(10)
    with pytest.raises(ValueError, match="cannot crop"):
        cache.crop(-100)
    assert contents(cache) == before


def test_cropping_more_than_a_padded_row_has():
    model = models.tiny()
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (20, 3)])
    cache = cache_of(model, budget=400)
    models.step(model, cache, ids, mask)
    before = contents(cache)
    with pytest.raises(ValueError, match="crop"):
        cache.crop(-5)
    assert contents(cache) == before
    assert cache.stats()["closed"] is None
