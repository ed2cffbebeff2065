"""Settings, models and profiles that do not fit: a clear error before anything changes."""

from dataclasses import dataclass

import models
import pytest
import torch
from caches import assert_works, cache_of, contents

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint

# ---- Config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "reasonaloc", "budget": 64}, r"method 'reasonaloc' is unknown \(did you mean 'reasonalloc'\?\)"),
        ({"method": "r-kv", "budget": 64}, "did you mean 'rkv'"),
        ({"method": "zzz", "budget": 64}, "method 'zzz' is unknown; there are adakv, .*dynamickv, full"),
        ({"method": "rkv", "budget": 64, "scorer": "importence"}, "scorer 'importence' .*did you mean 'importance'"),
        ({"method": "rkv", "budget": 64, "layers": "waves"}, "layers 'waves' .*did you mean 'wave'"),
        ({"method": "rkv", "budget": 64, "heads": "rout"}, "heads 'rout' .*did you mean 'route'"),
        ({"method": "rkv", "budget": 64, "options": {"sink": 4}}, "method 'rkv' has no option 'sink'; it has none"),
        (
            {"method": "triattention", "budget": 64, "options": {"calibration": "x.safetensors"}},
            r"no option: Config\(calibration=",
        ),
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
        ({"max_bytes": "12 potatoes"}, "max_bytes must be a number of bytes or like '512MiB'.*'12 potatoes'"),
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
    same = cache_of(model)
    models.step(model, same, models.prompt(20))
    expected = models.step(model, same, models.prompt(1))
    given = models.step(model.to(torch.bfloat16), cache, models.prompt(1))  # stored in the format of the first tokens
    assert given.dtype == torch.bfloat16 and cache.pool.core.format == "float32"
    torch.testing.assert_close(given.float(), expected, rtol=0.05, atol=0.05)
    before = contents(cache)
    with pytest.raises(TypeError, match=r"float32, bfloat16 and float16, got torch.float64"):
        models.step(model.double(), cache, models.prompt(1))
    assert contents(cache) == before
    assert cache.stats()["closed"] is None


def test_head_sizes_that_are_not_held():
    model = models.build("llama", head_dim=1026, num_attention_heads=1, num_key_value_heads=1)
    with pytest.raises(ValueError, match=r"head size.*1024.*1026"):
        models.step(model, cache_of(model), models.prompt(5))


def test_keys_without_data():
    cache = cache_of(models.tiny())
    key = torch.empty(1, 2, 5, 8, device="meta")
    with pytest.raises(ValueError, match=r"meta.*weights"):
        cache.update(key, key, 0)
    assert cache.stats()["closed"] is None
    assert_works(cache, models.tiny())


# ---- Profiles --------------------------------------------------------------------------------------------------------


def wave(model, layers=(0, 1, 2)):
    return ra.WaveProfile(tuple(float(i + 1) for i in layers), layers, fingerprint(model))


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
