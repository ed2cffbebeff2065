"""ra.install and ra.uninstall: what they switch on, and that they leave nothing behind."""

import copy

import models
import pytest
import torch
from transformers.cache_utils import DynamicCache

import reasonalloc as ra

CONFIG = ra.Config(method="rkv", budget=24, interval=8, window=4)


def generate(model, **options):
    return model.generate(models.prompt(40), max_new_tokens=20, do_sample=False, **options)


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    model = models.build("llama")
    model.set_attn_implementation(request.param)
    model.was = request.param
    return model


def assert_untouched(model):
    assert model.config._attn_implementation == model.was
    assert "generate" not in vars(model)
    assert not [name for name in vars(model) if "reasonalloc" in name]


def test_a_session(model):
    expected = generate(model)
    with ra.install(model, CONFIG) as session:
        assert session.last_cache is None
        assert model.config._attn_implementation == "reasonalloc"
        first = generate(model)
        cache = session.last_cache
        assert cache.stats()["evicted"]
        second = generate(model)
        assert session.last_cache is not cache  # a fresh one each time
        assert torch.equal(first, second)
    assert_untouched(model)
    assert session.last_cache.stats()["steps"] == 20  # still there to be looked at
    assert torch.equal(generate(model), expected)


def test_a_session_that_records(model):
    with ra.install(model, CONFIG, record=True) as session:
        out = generate(model)
        assert session.last_cache.trace(out[0]).held(50).any()
    with ra.install(model, CONFIG) as session:
        assert torch.equal(generate(model), out)
        with pytest.raises(RuntimeError, match="record=True"):
            session.last_cache.trace(out[0])


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_a_session_that_ends_in_an_error(model, error):
    with pytest.raises(type(error)), ra.install(model, CONFIG):
        generate(model)
        raise error
    assert_untouched(model)


def test_an_error_inside_generate(model):
    with pytest.raises(ValueError), ra.install(model, CONFIG):
        generate(model, num_beams=0, unknown_option=3)
    assert_untouched(model)
    with ra.install(model, CONFIG) as session:
        generate(model)
    assert session.last_cache.stats()["closed"] is None


def test_a_config_that_does_not_fit_fails_at_once(model):
    profile = ra.WaveProfile((1.0,), (0,), {})
    with pytest.raises(ValueError, match="another model"):
        ra.install(model, ra.Config(budget=24, profile=profile))
    assert_untouched(model)


def test_without_a_block(model):
    session = ra.install(model, CONFIG)
    generate(model)
    assert session.last_cache.stats()["evicted"]
    session.close()
    assert_untouched(model)
    session.close()  # harmless
    assert_untouched(model)
    ra.install(model, CONFIG)
    ra.uninstall(model)
    assert_untouched(model)
    ra.uninstall(model)
    assert_untouched(model)


def test_uninstall_within_a_block(model):
    with ra.install(model, CONFIG):
        ra.uninstall(model)
        assert_untouched(model)
        generate(model)
    assert_untouched(model)


def test_twice_is_refused(model):
    with ra.install(model, CONFIG) as session:
        with pytest.raises(ValueError, match="session already"):
            ra.install(model, CONFIG)
        generate(model)  # the first goes on
        assert session.last_cache.stats()["evicted"]
    assert_untouched(model)


def test_one_after_another(model):
    outputs = []
    for config in (CONFIG, ra.Config(method="full"), CONFIG):
        with ra.install(model, config) as session:
            outputs.append(generate(model))
        assert_untouched(model)
        assert session.last_cache.config is config
    assert torch.equal(outputs[0], outputs[2])


def test_caches_of_ones_own_go_first(model):
    expected = generate(model)
    with ra.install(model, CONFIG) as session:
        assert torch.equal(generate(model, past_key_values=DynamicCache(config=model.config)), expected)
        assert session.last_cache is None
        mine = ra.ReasonAllocCache(model, ra.Config(method="full"))
        assert torch.equal(generate(model, past_key_values=mine), expected)
        assert session.last_cache is None
        assert torch.equal(generate(model, use_cache=False), expected)
    assert_untouched(model)


def test_a_cache_switches_the_model_and_uninstall_back(model):
    expected = generate(model)
    cache = ra.ReasonAllocCache(model, CONFIG)
    assert model.config._attn_implementation == "reasonalloc"
    assert torch.equal(generate(model), expected)  # a stock cache while our attention is on
    with ra.install(model, CONFIG):  # a session inside leaves it on
        generate(model)
    assert model.config._attn_implementation == "reasonalloc"
    generate(model, past_key_values=cache)
    ra.ReasonAllocCache(model, CONFIG)
    ra.uninstall(model)
    assert_untouched(model)
    assert torch.equal(generate(model), expected)


def test_uninstalling_what_was_never_installed():
    model = models.build("llama")
    before = dict(vars(model))
    ra.uninstall(model)
    assert vars(model).keys() == before.keys()


def test_logits_are_those_of_the_previous_attention(model):
    with torch.no_grad():
        expected = model(models.prompt(30)).logits
        with ra.install(model, CONFIG):
            torch.testing.assert_close(model(models.prompt(30)).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(models.prompt(30)).logits, expected)


def test_models_beside_each_other():
    one, two = models.build("llama"), models.build("qwen3")
    with ra.install(one, CONFIG) as first, ra.install(two, ra.Config(method="streaming", budget=20)) as second:
        generate(one), generate(two), generate(one)
        assert first.last_cache.model is one
        assert second.last_cache.model is two
    for model in (one, two):
        assert model.config._attn_implementation == "sdpa"


def test_a_model_is_as_it_was_for_saving(model, tmp_path):
    before = copy.deepcopy(model.config.to_dict())
    with ra.install(model, CONFIG):
        generate(model)
    assert model.config.to_dict() == before
    model.save_pretrained(tmp_path)


def test_sampling_parameters_pass_through(model):
    with ra.install(model, CONFIG) as session:
        tokens = generate(model, num_return_sequences=3, num_beams=3)
        assert tokens.shape[0] == 3
        assert len(session.last_cache.stats()["slots"]) == 3
        tokens = model.generate(
            models.prompt(40),
            attention_mask=torch.ones(1, 40, dtype=torch.long),
            max_new_tokens=4,
            past_key_values=None,
        )
        assert tokens.shape == (1, 44)


def test_a_session_entered_again(model):
    """It works anew, or says that it is closed; never the stock cache in silence."""
    session = ra.install(model, CONFIG)
    with session:
        generate(model)
    first = session.last_cache
    try:
        with session:
            generate(model)
            assert session.last_cache is not first
    except (RuntimeError, ValueError) as error:
        assert "session" in str(error)
    assert_untouched(model)
