"""Whatever goes wrong: a clear Python error, and a cache that is as it was or says that it is closed."""

from dataclasses import dataclass

import models
import numpy as np
import pytest
import torch

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.pages import PagePool

SETTINGS = {"budget": 24, "interval": 8, "window": 4}


def cache_of(model, **changes):
    options = {"method": "rkv", **SETTINGS, **changes}
    return ra.ReasonAllocCache(model, ra.Config(**{k: v for k, v in options.items() if v is not None}))


def contents(cache):
    figures = cache.stats()
    kept = [p.tolist() for i in figures["layers"] for r in range(len(figures["slots"])) for p in cache.positions(i, r)]
    others = [getattr(x, "cumulative_length", 0) for x in cache.layers]
    return kept, others, cache.get_seq_length(), figures["bytes"], figures["slots"]


def assert_closed(cache, model, reason):
    """Each use says so, until reset()."""
    assert reason in cache.stats()["closed"]
    calls = [
        lambda: models.step(model, cache, models.prompt(1)),
        lambda: cache.reorder_cache(torch.tensor([0])),
        lambda: cache.batch_repeat_interleave(2),
        lambda: cache.crop(-1),
        lambda: models.step(model, cache, models.prompt(1)),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"the cache is closed .*reset\(\)"):
            call()
    cache.reset()
    assert cache.stats()["closed"] is None
    assert_works(cache, model)


def assert_works(cache, model):
    """A fresh or reset cache gives what a stock one gives."""
    assert models.step(model, cache, models.prompt(12)).isfinite().all()
    assert models.step(model, cache, models.prompt(1)).isfinite().all()
    assert cache.stats()["slots"][0][0][0] == 13


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


# ---- Config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "reasonaloc", "budget": 64}, r"method 'reasonaloc' is unknown \(did you mean 'reasonalloc'\?\)"),
        ({"method": "r-kv", "budget": 64}, "did you mean 'rkv'"),
        ({"method": "zzz", "budget": 64}, "method 'zzz' is unknown; there are adakv, full"),
        ({"method": "rkv", "budget": 64, "scorer": "importence"}, "scorer 'importence' .*did you mean 'importance'"),
        ({"method": "rkv", "budget": 64, "layers": "waves"}, "layers 'waves' .*did you mean 'wave'"),
        ({"method": "rkv", "budget": 64, "heads": "rout"}, "heads 'rout' .*did you mean 'route'"),
        ({"method": "rkv", "budget": 64, "options": {"sink": 4}}, "method 'rkv' has no option 'sink'; it has none"),
        ({"method": "rkv"}, "exactly one of budget, ratio and max_bytes, got none"),
        ({"method": "rkv", "budget": 64, "ratio": 0.5}, "got budget, ratio"),
        ({"method": "rkv", "budget": 64, "max_bytes": "1MiB"}, "got budget, max_bytes"),
        ({"method": "rkv", "budget": 64, "ratio": 0.5, "max_bytes": 9}, "got budget, ratio, max_bytes"),
        ({"method": "full", "budget": 64}, "keeps every token and takes no budget"),
        ({"method": "full", "ratio": 0.5}, "takes no ratio"),
        ({"budget": 0}, "budget must lie between"),
        ({"budget": -5}, "budget must lie between"),
        ({"budget": 1.5}, "budget must be a whole number, got 1.5"),
        ({"budget": True}, "budget must be a whole number"),
        ({"budget": "128"}, "budget must be a whole number, got '128'"),
        ({"budget": 8}, "budget must be above the window, whose 8 tokens every head keeps, got 8"),
        ({"budget": 64, "window": 64}, "above the window"),
        ({"budget": 64, "window": 100}, "above the window"),
        ({"budget": 64, "window": 0}, "window must lie"),
        ({"ratio": 0}, "ratio must be above 0"),
        ({"ratio": 1.5}, "ratio must lie"),
        ({"ratio": float("nan")}, "ratio must lie"),
        ({"max_bytes": "12 potatoes"}, "max_bytes must be a number or like '512MiB'.*'12 potatoes'"),
        ({"max_bytes": -5}, "max_bytes"),
        ({"budget": 64, "interval": 0}, "interval must lie"),
        ({"budget": 64, "interval": 2.5}, "interval must be a whole number"),
        ({"budget": 64, "sinks": -1}, "sinks"),
        ({"budget": 64, "alpha": 1.01}, "alpha must lie between 0 and 1, got 1.01"),
        ({"budget": 64, "alpha": float("nan")}, "alpha"),
        ({"budget": 64, "alpha": "0.1"}, "alpha must be a number"),
        ({"budget": 64, "threshold": 2}, "threshold"),
        ({"budget": 64, "kernel": 6}, "kernel must be odd, got 6"),
        ({"budget": 64, "kernel": 0}, "kernel"),
        ({"budget": 64, "gamma": -1}, "gamma"),
        ({"budget": 64, "lo": 2}, "lo"),
        ({"budget": 64, "hi": 0.5}, "hi"),
        ({"budget": 64, "mu": 2}, "mu"),
        ({"budget": 64, "safeguard": -1}, "safeguard"),
        ({"budget": 64, "rho": 1.5}, "rho"),
        ({"budget": 64, "beta": 0}, "beta"),
        ({"budget": 64, "seed": -1}, "seed"),
    ],
)
def test_configs_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        ra.Config(**options)


@pytest.mark.parametrize(
    "options", [{"method": 5}, {"method": None}, {"scorer": 3}, {"profile": "wave.json"}, {"options": 3}]
)
def test_config_values_of_the_wrong_kind(options):
    with pytest.raises((TypeError, ValueError)):
        ra.ReasonAllocCache(models.tiny(), ra.Config(**{"budget": 64, **options}))


def test_a_config_does_not_change():
    config = ra.Config(budget=64)
    with pytest.raises(AttributeError):
        config.budget = 32


# ---- Models ----------------------------------------------------------------------------------------------------------


def test_a_model_whose_every_layer_slides():
    with pytest.raises(ValueError, match=r"no layer has full attention.*sliding_window = None"):
        cache_of(models.tiny("mistral-sliding"))
    assert models.tiny("mistral-sliding").config._attn_implementation != "reasonalloc"


def test_dtypes_that_are_not_held():
    model = models.build("llama", torch.float64)
    with pytest.raises(TypeError, match=r"float32, bfloat16 and float16, the model is torch.float64"):
        cache_of(model)
    assert model.config._attn_implementation != "reasonalloc"


def test_a_model_that_changes_its_dtype():
    model = models.build("llama")
    cache = cache_of(model)
    models.step(model, cache, models.prompt(20))
    before = contents(cache)
    with pytest.raises(TypeError, match=r"dtype|float"):
        models.step(model.to(torch.bfloat16), cache, models.prompt(1))
    assert contents(cache) == before
    models.step(model.float(), cache, models.prompt(1))
    with pytest.raises(TypeError, match=r"float32, bfloat16 and float16, got torch.float64"):
        models.step(model.double(), cache, models.prompt(1))
    assert cache.stats()["closed"] is None


def test_head_sizes_that_are_not_held():
    model = models.build("llama", head_dim=1026, num_attention_heads=1, num_key_value_heads=1)
    with pytest.raises(ValueError, match=r"head size.*1024.*1026"):
        models.step(model, cache_of(model), models.prompt(5))


@pytest.mark.parametrize("device", ["meta"])
def test_devices_that_are_not_served(device):
    model = models.build("llama").to(device)
    with pytest.raises(NotImplementedError, match=f"{device}.*CPU"):
        cache_of(model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_model_on_a_gpu():
    model = models.build("llama").to("cuda")
    with pytest.raises(NotImplementedError, match=r"cuda.*CPU"):
        cache_of(model)


def test_keys_on_another_device():
    """A model that moved after its cache was made."""
    cache = cache_of(models.tiny())
    key = torch.empty(1, 2, 5, 8, device="meta")
    with pytest.raises(NotImplementedError, match=r"meta.*CPU"):
        cache.update(key, key, 0)
    assert cache.stats()["closed"] is None
    assert_works(cache, models.tiny())


# ---- Profiles --------------------------------------------------------------------------------------------------------


def wave(model, layers=(0, 1, 2)):
    return ra.WaveProfile(tuple(float(i + 1) for i in layers), layers, ra.wave.fingerprint(model))


@pytest.mark.parametrize(
    ("name", "message"),
    [("qwen2", "model_type"), ("llama-mqa", "kv_heads"), ("llama-odd", "query_heads"), ("gemma3", "layers")],
)
def test_a_profile_of_another_model(name, message):
    profile = wave(models.tiny("llama"))
    with pytest.raises(ValueError, match=f"the wave profile is of another model: .*{message}"):
        cache_of(models.tiny(name), method="reasonalloc", profile=profile)
    assert models.tiny(name).config._attn_implementation != "reasonalloc"


def test_a_profile_of_other_layers():
    model = models.tiny()
    with pytest.raises(ValueError, match=r"for layers \[0, 2\], the model's are \[0, 1, 2\]"):
        cache_of(model, method="reasonalloc", profile=wave(model, (0, 2)))


# ---- Budgets that do not fit -----------------------------------------------------------------------------------------


def test_max_bytes_below_what_the_batch_needs():
    model = models.tiny()
    cache = cache_of(model, budget=None, max_bytes="20KiB")
    with pytest.raises(ValueError, match=r"max_bytes='20KiB' leaves no room.*need at least (\d+) bytes") as error:
        models.step(model, cache, models.prompt(30, rows=3))
    assert cache.get_seq_length() == 0
    assert cache.stats()["closed"] is None
    least = int(str(error.value).rsplit("least ", 1)[1].split()[0])
    enough = cache_of(model, budget=None, max_bytes=least)
    models.step(model, enough, models.prompt(30, rows=3))
    assert enough.stats()["bytes"] <= least
    with pytest.raises(ValueError, match="leaves no room"):
        models.step(model, cache_of(model, budget=None, max_bytes=least - 1), models.prompt(30, rows=3))


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


# ---- Interruptions ---------------------------------------------------------------------------------------------------


def interrupt(module, error):
    """Raises at the end of a module's forward pass, once."""

    def hook(*_):
        handle.remove()
        raise error

    handle = module.register_forward_hook(hook)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine"), MemoryError()])
def test_an_interrupted_forward_pass(error):
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    interrupt(model.model.layers[0], error)
    with pytest.raises(type(error)):
        models.step(model, cache, models.prompt(1))
    with pytest.raises(RuntimeError, match=r"interrupted between layers\); call reset\(\)"):
        models.step(model, cache, models.prompt(1))
    assert_closed(cache, model, "interrupted")


def test_an_interruption_before_the_first_layer_changes_nothing():
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    before = contents(cache)
    interrupt(model.model.embed_tokens, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        models.step(model, cache, models.prompt(1))
    assert contents(cache) == before
    models.step(model, cache, models.prompt(1))


@pytest.mark.parametrize("layer", range(5))
def test_an_interruption_among_sliding_layers(layer):
    """Gemma's layers 2 and 5 have a budget, the others slide; after any of them the cache is out of step."""
    model = models.tiny("gemma3")
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    interrupt(model.model.layers[layer], KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        models.step(model, cache, models.prompt(1))
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        models.step(model, cache, models.prompt(1))
    assert_closed(cache, model, "interrupted")


def test_moving_the_rows_of_an_interrupted_cache():
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    interrupt(model.model.layers[1], KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        models.step(model, cache, models.prompt(1))
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        cache.reorder_cache(torch.tensor([0]))
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        cache.crop(-1)
    cache.reset()
    assert_works(cache, model)


@pytest.mark.parametrize("where", ["measure", "leave"])
def test_an_error_after_the_first_layer_has_stored(monkeypatch, where):
    model = models.tiny()
    cache = cache_of(model, method="reasonalloc")
    monkeypatch.setattr(cache, where, lambda *_, **__: (_ for _ in ()).throw(ArithmeticError("late")))
    with pytest.raises(ArithmeticError):
        models.step(model, cache, models.prompt(12))
    monkeypatch.undo()
    assert_closed(cache, model, "late")


# ---- Out of memory ---------------------------------------------------------------------------------------------------


def no_memory(*_, **__):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def test_no_memory_for_the_prompt(monkeypatch):
    model = models.tiny()
    cache = cache_of(model)
    monkeypatch.setattr("reasonalloc.pages.torch.empty", no_memory)
    with pytest.raises(MemoryError, match=r"no memory for .* more bytes of the key-value cache"):
        models.step(model, cache, models.prompt(12))
    monkeypatch.undo()
    assert cache.stats()["closed"] is None  # the first layer had not changed
    assert_works(cache, model)


def grow_exactly(self, pages):
    """No page more than asked for, so that free ones run out at a known place."""
    self.core.add_slab(torch.empty(pages * self.core.page_bytes, dtype=torch.uint8))


def fail_to_grow(self, pages):
    raise MemoryError("no memory for more bytes of the key-value cache")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_no_memory_amid_a_chain(monkeypatch, layer):
    model = models.tiny()
    monkeypatch.setattr(PagePool, "grow", grow_exactly)
    cache = cache_of(model, budget=4000, interval=4000)
    models.step(model, cache, models.prompt(16))
    assert cache.pool.core.info()[2] == 0
    if layer:
        grow_exactly(cache.pool, 2 * layer)  # enough for the heads of the layers before
    before = contents(cache)
    monkeypatch.setattr(PagePool, "grow", fail_to_grow)
    with pytest.raises(MemoryError):
        models.step(model, cache, models.prompt(16))
    monkeypatch.undo()
    if layer:
        assert_closed(cache, model, "MemoryError")
    else:
        assert contents(cache) == before
        assert cache.stats()["closed"] is None
        models.step(model, cache, models.prompt(16))
        assert cache.get_seq_length() == 32


def test_no_memory_for_pages_of_ones_own(monkeypatch):
    """Forked rows share their pages; cutting one of them needs pages of its own."""
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(22))
    cache.batch_repeat_interleave(3)
    pool, cut, one = cache.pool.core, cache.cutter.cut, torch.zeros(1, 1, 16, 8)
    hoard = _core.Layer(pool, 1, 1, 1, 1)

    def cut_without_room(*arguments):
        while not hoard.step(one, one, one, None, 1.0, None):
            pass
        monkeypatch.setattr(PagePool, "grow", fail_to_grow)
        return cut(*arguments)

    monkeypatch.setattr(cache.cutter, "cut", cut_without_room)
    with pytest.raises(MemoryError):
        for i in range(8):
            models.step(model, cache, models.prompt(1, rows=3, seed=i))
    monkeypatch.undo()
    assert_closed(cache, model, "MemoryError")


class Failing:
    """A layer's C object whose one method fails."""

    def __init__(self, core, name):
        self._core, self._name = core, name

    def __getattr__(self, name):
        if name == self._name:
            return lambda *_: (_ for _ in ()).throw(MemoryError("none left"))
        return getattr(self._core, name)


@pytest.mark.parametrize("name", ["reorder", "crop"])
def test_an_error_while_rows_move(name):
    """Some layers have moved, others not: the cache must say so."""
    model = models.tiny()
    cache = cache_of(model, budget=400)
    models.step(model, cache, models.prompt(12, rows=2))
    models.step(model, cache, models.prompt(1, rows=2))
    cache.ragged[1].core = Failing(cache.ragged[1].core, name)
    with pytest.raises(MemoryError):
        cache.reorder_cache(torch.tensor([1, 0])) if name == "reorder" else cache.crop(-1)
    assert_closed(cache, model, "none left")


# ---- Attention that was taken away -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_cache_whose_model_was_uninstalled(name):
    model = models.tiny(name)
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    before = contents(cache)
    ra.uninstall(model)
    with pytest.raises(RuntimeError, match="no longer uses reasonalloc's attention"):
        models.step(model, cache, models.prompt(1))
    cache_of(model)  # switches the attention on again
    if cache.stats()["closed"]:
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            models.step(model, cache, models.prompt(1))
    else:
        assert contents(cache) == before
        models.step(model, cache, models.prompt(1))
        assert cache.get_seq_length() == 13


def test_attention_that_the_kernels_do_not_compute():
    model = models.tiny()
    cache = cache_of(model)
    attention = model.model.layers[0].self_attn
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    key, value = cache.update(key, key.clone(), 0)
    with pytest.raises(ValueError, match="softcap, which the ragged attention does not support"):
        ra.attention.attention_forward(attention, query, key, value, None, 1.0, softcap=50.0)


def test_offloading_is_refused():
    cache = cache_of(models.tiny())
    for layer in cache.ragged:
        for call in (layer.offload, layer.prefetch):
            with pytest.raises(NotImplementedError, match="offloaded"):
                call()


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


# ---- Methods ---------------------------------------------------------------------------------------------------------


def test_registering_what_is_no_method(register):
    with pytest.raises(ValueError, match="not a subclass of"):
        register("mine")(dict)
    with pytest.raises(ValueError, match="takes the method's name"):
        register(ra.Method)
    with pytest.raises(ValueError, match="takes the method's name"):
        register("")

    @dataclass(frozen=True)
    class Mine(ra.Method):
        pass

    with pytest.raises(ValueError, match="method 'rkv' exists already"):
        register("rkv")(Mine)
    register("mine")(Mine)
    assert "mine" in ra.methods()
