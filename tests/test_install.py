"""ra.install and ra.uninstall: what they switch on, and that they leave nothing behind."""

import copy
import pickle

import models
import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache

import reasonalloc as ra
from reasonalloc.hf.compat import CACHE_NAME, cache_argument

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


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (None, {"budget": 24}, r"config must be a reasonalloc\.Config, got the dict .*write ra\.Config\(\*\*config\)"),
        (None, "snapkv", "config must be a reasonalloc.Config, got the str 'snapkv'"),
        ("gpt2", CONFIG, "the model must be one of transformers, got 'gpt2': load it first"),
        (torch.nn.Linear(2, 2), CONFIG, "the model must be one of transformers, got a Linear"),
        (torch.nn.DataParallel(torch.nn.Linear(2, 2)), CONFIG, "the model must be one of transformers, got a DataPar"),
    ],
)
def test_what_is_no_model_or_no_config(model, config, message):
    own = models.tiny() if model is None else model
    for use in (ra.install, ra.ReasonAllocCache):
        with pytest.raises(TypeError, match=message):
            use(own, config)
    if model is None:
        assert "generate" not in vars(own) and own.config._attn_implementation != "reasonalloc"
    else:
        with pytest.raises(TypeError, match=message):
            ra.uninstall(own)


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
        assert torch.equal(generate(model, **cache_argument(DynamicCache(config=model.config))), expected)
        assert session.last_cache is None
        mine = ra.ReasonAllocCache(model, ra.Config(method="full"))
        assert torch.equal(generate(model, **cache_argument(mine)), expected)
        assert session.last_cache is None
        assert torch.equal(generate(model, use_cache=False), expected)
    assert_untouched(model)


def test_a_call_that_says_no_cache_or_names_one(model):
    """In arguments or a generation config; a text is then not stored anew at each step."""
    expected = generate(model)
    own = copy.deepcopy(model.generation_config)
    own.use_cache = False
    with ra.install(model, CONFIG) as session:
        for options in ({"use_cache": False}, {"cache_implementation": "static"}):
            assert torch.equal(generate(model, **options), expected)
        assert torch.equal(generate(model, generation_config=own), expected)
        assert torch.equal(model.generate(models.prompt(40), own, max_new_tokens=20, do_sample=False), expected)
        assert session.last_cache is None
        model.generation_config.use_cache = False
        assert torch.equal(generate(model), expected)
        assert session.last_cache is None
        generate(model, use_cache=True)
        assert session.last_cache.get_seq_length() == 59
        generate(model, inputs_embeds=model.get_input_embeddings()(models.prompt(40)))
        assert session.last_cache.get_seq_length() == 59
    assert_untouched(model)


def test_no_warning_of_transformers_is_caused(model, recwarn):
    with ra.install(model, CONFIG):
        generate(model)
        generate(model, **{CACHE_NAME: None})
    ra.profile(model, models.Words(), ["ab"], max_new_tokens=3, progress=False)
    assert not [str(w.message) for w in recwarn if "deprecated" in str(w.message)]


def test_a_compiled_model(model):
    expected, compiled = generate(model), torch.compile(model)
    with ra.install(compiled, CONFIG) as session:
        generate(compiled)
        assert session.last_cache.stats()["evicted"]
    assert_untouched(model)
    assert torch.equal(generate(model), expected)
    ra.install(compiled, CONFIG)
    ra.uninstall(compiled)
    assert_untouched(model)
    ra.ReasonAllocCache(compiled, CONFIG)
    ra.uninstall(compiled)
    assert_untouched(model)


@pytest.mark.parametrize("wrapper", ["DataParallel", "peft", "accelerate"])
def test_wrapped_models(model, wrapper):
    expected = generate(model)
    if wrapper == "peft":
        peft = pytest.importorskip("peft")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    elif wrapper == "accelerate":
        wrapped = pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(model)
    else:
        wrapped = getattr(torch.nn, wrapper)(model)
    with ra.install(wrapped, CONFIG) as session:
        generate(wrapped if hasattr(wrapped, "generate") else wrapped.module)
        assert session.last_cache.stats()["evicted"]
        assert session.model is model
    assert_untouched(model)
    assert torch.equal(generate(model), expected)
    ra.install(wrapped, CONFIG)
    ra.uninstall(wrapped)
    assert_untouched(model)


def test_a_copy_of_a_model_in_a_session(model):
    """It runs its own weights, in no session; so does one that was pickled."""
    expected = generate(model)
    with ra.install(model, CONFIG):
        twin, other = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        with torch.no_grad():
            for weights in twin.parameters():
                weights.zero_()
        assert generate(twin)[0, 40:].tolist() == [0] * 20
        assert torch.equal(generate(other), expected)
    assert_untouched(model)
    for copied in (twin, other):
        with ra.install(copied, CONFIG) as session:
            generate(copied)
            assert session.last_cache.model is copied
        ra.uninstall(copied)
        assert copied.config._attn_implementation == model.was
    assert torch.equal(generate(model), expected)


def test_a_session_leaves_the_next_one_alone(model):
    with ra.install(model, CONFIG):
        ra.uninstall(model)
        later = ra.install(model, CONFIG)
    generate(model)
    assert later.last_cache is not None
    later.close()
    assert_untouched(model)


def test_a_generate_of_others_is_left_alone(model):
    model.generate = lambda *_, **__: "mine"
    ra.ReasonAllocCache(model, CONFIG)
    ra.uninstall(model)
    assert model.generate() == "mine"


def test_a_cache_switches_the_model_and_uninstall_back(model):
    expected = generate(model)
    cache = ra.ReasonAllocCache(model, CONFIG)
    assert model.config._attn_implementation == "reasonalloc"
    assert torch.equal(generate(model), expected)  # a stock cache while our attention is on
    with ra.install(model, CONFIG):  # a session inside leaves it on
        generate(model)
    assert model.config._attn_implementation == "reasonalloc"
    generate(model, **cache_argument(cache))
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


def test_drafts_by_a_models_own_layers():
    """They have a cache of their own, and the session's is that of the text."""
    model = models.build("llama", pad_token_id=96)
    expected = generate(model)
    try:
        generate(model, assistant_early_exit=1)
    except TypeError as error:
        pytest.skip(f"not in this transformers: {error}")
    with ra.install(model, ra.Config(method="full")) as session:
        assert torch.equal(generate(model, assistant_early_exit=1), expected)
        (figures,) = session.history
        assert figures["layers"] == [0, 1, 2] and session.last_cache.get_seq_length() >= 59


def test_a_model_whose_text_part_cannot_be_switched(monkeypatch):
    """Its other parts go back too."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=14)
    text = transformers.LlamaConfig(**sizes, vocab_size=models.VOCAB)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=96)
    model = models.seeded(transformers.LlavaForConditionalGeneration, config)
    monkeypatch.setattr(transformers.LlamaModel, "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration is not supported"):
        ra.install(model, CONFIG)
    assert {x.config._attn_implementation for x in model.modules() if hasattr(x, "config")} == {"sdpa"}


def whisper():
    small = {"vocab_size": 120, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
             "max_source_positions": 50, "max_target_positions": 60, "init_std": 0.25, "pad_token_id": 0,
             "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3, "suppress_tokens": None,
             "begin_suppress_tokens": None}  # fmt: skip
    model = models.seeded(transformers.WhisperForConditionalGeneration, transformers.WhisperConfig(**small))
    settings = {"no_timestamps_token_id": 99, "is_multilingual": False, "max_initial_timestamp_index": 5,
                "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 3}  # fmt: skip
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.mark.parametrize(
    ("frames", "options"),
    [
        (300, {"return_timestamps": True, "attention_mask": torch.ones(1, 300, dtype=torch.long)}),
        (100, {"return_timestamps": True}),
        (100, {"temperature": (0.0, 0.0), "compression_ratio_threshold": 0.01}),
    ],
    ids=["long", "short", "again"],
)
def test_a_generate_that_is_several(frames, options):
    """Whisper's, for the parts of a recording and where an answer is not good enough: each has a cache."""
    model = whisper()
    sound = torch.randn(1, 8, frames, generator=torch.Generator().manual_seed(0))
    how = {"max_new_tokens": 12, "do_sample": False, **options}
    expected = model.generate(sound, **how)
    with ra.install(model, ra.Config(method="full")) as session:
        with pytest.raises(ValueError, match="has a session already"):
            ra.install(model, CONFIG)
        assert torch.equal(model.generate(sound, **how), expected)
        assert len(session.history) > 1
        model.generate(sound, **how, use_cache=False)
        twin = copy.deepcopy(model)
    assert "_prepare_cache_for_generation" not in vars(model)
    assert torch.equal(twin.generate(sound, **how), expected)
    ra.install(model, CONFIG)
    ra.uninstall(model)
    assert "_prepare_cache_for_generation" not in vars(model)


def test_who_reads_stored_keys_is_told():
    """Whisper, of a short recording, where the result is to be a dict."""
    model = whisper()
    with ra.install(model, CONFIG), pytest.raises(AttributeError, match="each head holds its own tokens"):
        model.generate(torch.randn(1, 8, 100), max_new_tokens=12, do_sample=False, return_dict_in_generate=True)
