"""What models and users do to a cache beside plain generation: the right values, or a refusal by name."""

import copy
import gc
import weakref

import models
import pytest
import tiny
import torch
import transformers
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

import reasonalloc as ra
from reasonalloc.hf.compat import cache_argument, cache_of
from reasonalloc.hf.profile import measure

FULL = ra.Config(method="full")
SMALL = ra.Config(method="rkv", budget=24, interval=8, window=4)


def generate(model, ids=None, new=30, **options):
    ids = models.prompt(60) if ids is None else ids
    return model.generate(ids, max_new_tokens=new, do_sample=False, **options)


def with_cache(model, config=FULL, ids=None, new=30, **options):
    """(tokens, cache)"""
    cache = ra.ReasonAllocCache(model, config)
    return generate(model, ids, new, **cache_argument(cache), **options), cache


# ---- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("config", [FULL, SMALL, ra.Config(budget=24, interval=8, window=4)])
def test_a_cache_is_freed_with_its_last_reference(name, config):
    """Without the cyclic collector, for which slabs do not count."""
    model = models.tiny(name)
    gc.disable()
    try:
        _, cache = with_cache(model, config)
        gone, pool = weakref.ref(cache), weakref.ref(cache.pool)
        del cache
        assert gone() is None and pool() is None
    finally:
        gc.enable()


def test_a_session_frees_the_cache_before():
    model = models.tiny()
    gc.disable()
    try:
        with ra.install(model, SMALL) as session:
            generate(model)
            gone = weakref.ref(session.last_cache)
            generate(model)
            assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("config", [FULL, SMALL])
def test_rows_that_leave_give_their_memory_back(config):
    model = models.build("llama", head_dim=128, num_hidden_layers=2)
    cache = ra.ReasonAllocCache(model, config)
    models.step(model, cache, models.prompt(600, rows=16))
    before = cache.stats()
    cache.batch_select_indices(torch.tensor([3]))
    after = cache.stats()
    assert after["bytes"] * 16 == before["bytes"]
    if config is FULL:
        assert after["reserved_bytes"] < before["reserved_bytes"] / 4


# ---- Copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek_v3"])
@pytest.mark.parametrize("config", [FULL, SMALL, ra.Config(budget=24, interval=8, window=4, smoothing=0.5)])
def test_a_copy_goes_on_by_itself(name, config):
    """A prompt that was read and compressed once serves several continuations, each as if it had read it itself."""
    model = models.tiny(name) if name in models.ARCHITECTURES else tiny.build(name)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (40, 23)])
    first = ra.ReasonAllocCache(model, config)
    models.step(model, first, ids, mask)
    used = first.stats()["bytes"]
    caches = [first, copy.deepcopy(first), copy.deepcopy(first)]
    assert first.stats()["bytes"] == used and caches[1].model is model
    for number in (1, 2, 0):
        alone = ra.ReasonAllocCache(model, config)
        models.step(model, alone, ids, mask)
        known = mask
        for i in range(20):
            token = models.prompt(1, rows=2, seed=100 * number + i)
            known = torch.nn.functional.pad(known, (0, 1), value=1)
            given, expected = (models.step(model, each, token, known) for each in (caches[number], alone))
            assert torch.equal(given, expected)
        own, other = caches[number].stats(), alone.stats()
        for key in ("slots", "budgets", "evicted", "steps", "routings", "lost_mass", "ratio"):
            assert own[key] == other[key]
    caches[1].reset()
    models.step(model, caches[2], models.prompt(1, rows=2))
    assert first.get_seq_length() == 60


def test_copies_in_generate():
    """transformers' way to reuse a prefix."""
    model = models.tiny()
    prefix = ra.ReasonAllocCache(model, SMALL)
    models.step(model, prefix, models.prompt(40))
    for seed in (1, 2):
        text = torch.cat([models.prompt(40), models.prompt(5, seed=seed)], 1)
        given = generate(model, text, **cache_argument(copy.deepcopy(prefix)))
        alone = ra.ReasonAllocCache(model, SMALL)
        models.step(model, alone, models.prompt(40))
        assert torch.equal(given, generate(model, text, **cache_argument(alone)))
    assert prefix.get_seq_length() == 40


def test_a_copy_records_by_itself_and_frees_its_memory():
    model = models.tiny()
    cache = ra.ReasonAllocCache(model, SMALL, record=True, observers=[seen := [].append])
    models.step(model, cache, models.prompt(40))
    twin = copy.deepcopy(cache)
    assert twin.observers == (seen,)
    for i in range(16):
        models.step(model, twin, models.prompt(1, seed=i))
    text = torch.cat([models.prompt(40), *(models.prompt(1, seed=i) for i in range(16))], 1)[0]
    assert len(twin.trace(text).cuts) > len(cache.trace(models.prompt(40)[0]).cuts)
    pool = weakref.ref(cache.pool)
    gc.disable()
    try:
        used = cache.stats()["bytes"]
        del twin
        assert cache.stats()["bytes"] < used
        del cache
        assert pool() is None
    finally:
        gc.enable()


def test_copies_of_empty_and_of_closed_caches():
    model = models.tiny()
    twin = copy.deepcopy(ra.ReasonAllocCache(model, SMALL))
    assert torch.equal(generate(model, **cache_argument(twin)), with_cache(model, SMALL)[0])
    key = torch.randn(1, 2, 3, 8)
    cache = ra.ReasonAllocCache(model, SMALL)
    cache.update(key, key, 0)
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        models.step(model, cache, models.prompt(1))
        cache.update(key, key, 2)
    assert copy.deepcopy(cache).stats()["closed"] == cache.stats()["closed"] is not None


# ---- A model's own attention -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_outside_our_cache_a_model_keeps_its_own_attention(attention):
    """Also its weights, which scaled dot-product attention does not give."""
    model = models.build("llama")
    model.set_attn_implementation(attention)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (12, 7)])
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, output_attentions=attention == "eager")
        ra.ReasonAllocCache(model, FULL)
        given = model(ids, attention_mask=mask, output_attentions=attention == "eager")
    assert torch.equal(given.logits, expected.logits)
    if attention == "eager":
        assert len(given.attentions) == 3
        for a, b in zip(given.attentions, expected.attentions, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_eager_attention_with_other_caches(cache):
    model = models.build("llama")
    model.set_attn_implementation("eager")
    options = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (30, 7)])
    expected = generate(model, ids, attention_mask=mask, **options)
    ra.ReasonAllocCache(model, FULL)
    assert torch.equal(generate(model, ids, attention_mask=mask, **options), expected)


def test_the_scale_of_a_models_logits():
    """The wave is of the logits that the model computes, not of 1/sqrt(d)."""
    waves = []
    for scale in (8**-0.5, 2.0):
        model = models.build("llama")
        for layer in model.model.layers:
            layer.self_attn.scaling = scale
            with torch.no_grad():  # the same logits by other queries
                layer.self_attn.q_proj.weight.mul_(8**-0.5 / scale)
        tokens, cache = with_cache(model, ra.Config(budget=24, interval=8, window=4))
        waves.append((cache.cutter.budgets.demand, tokens, measure(model, models.prompt(60))))
    assert (waves[0][0] == waves[1][0]).all()
    assert torch.equal(waves[0][1], waves[1][1])  # and so do scores
    assert waves[0][2] == waves[1][2]


# ---- Rotary embeddings that change -----------------------------------------------------------------------------------


def long_rope():
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 10000.0}
    return models.build("phi3", original_max_position_embeddings=64, rope_parameters=factors)


def test_a_text_that_grows_past_its_rotary_embedding():
    """transformers would drop the cache there, in silence; ours says so, with the tokens before as they should be."""
    model, ids = long_rope(), models.prompt(40)
    expected = generate(model, ids, 25)  # 65 tokens, of which 64 are in the cache
    given, cache = with_cache(model, ids=ids, new=25)
    assert torch.equal(given, expected)
    assert cache.get_seq_length() == 64
    before = cache.stats()
    with pytest.raises(ValueError, match="embedding changes beyond 64 tokens"):
        models.step(model, cache, models.prompt(1))
    assert cache.stats() == before
    for config in (FULL, SMALL):
        with pytest.raises(ValueError, match="embedding changes beyond 64 tokens"):
            with_cache(model, config, ids, 26)


@pytest.mark.parametrize("config", [FULL, SMALL])
def test_a_text_that_begins_past_the_switch(config):
    model = long_rope()
    given, cache = with_cache(model, config, models.prompt(70))
    if config is FULL:
        assert torch.equal(given, generate(model, models.prompt(70)))
    assert cache.get_seq_length() == 99
    assert cache.stats()["steps"] == 30


def test_the_phi_family_without_that_switch():
    """Its generate drops caches at that length nevertheless, and 5.2 then goes on with other tokens."""
    model, plain = models.build("phi3", original_max_position_embeddings=64), models.build("phi3")
    for tokens in (40, 70):
        given, cache = with_cache(model, ids=models.prompt(tokens), new=50)
        assert torch.equal(given, generate(plain, models.prompt(tokens), 50))
        assert cache.get_seq_length() == tokens + 49


# ---- Precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_autocast(weights):
    model = models.build("llama", weights)
    text, errors = models.prompt(40, rows=2), []
    exact, stock = models.build("llama").to(weights).float(), DynamicCache(config=model.config)
    cache, reference = ra.ReasonAllocCache(model, FULL), DynamicCache(config=model.config)
    for begin, end in [(0, 20), *((i, i + 1) for i in range(20, 40))]:
        expected = models.step(exact, reference, text[:, begin:end])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given = [models.step(model, c, text[:, begin:end]).float() for c in (cache, stock)]
        errors.append([(x - expected).square().mean().item() for x in given])
    ours, theirs = torch.tensor(errors).mean(0).sqrt()
    assert 0 < ours <= 1.25 * theirs
    assert cache.pool.core.format == "bfloat16"


def test_autocast_that_ends_within_a_text():
    """The cache goes on in the format that it began with."""
    model = models.build("llama")
    cache = ra.ReasonAllocCache(model, FULL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        models.step(model, cache, models.prompt(20))
    exact = ra.ReasonAllocCache(model, FULL)
    models.step(model, exact, models.prompt(20))
    given, expected = (models.step(model, c, models.prompt(1)) for c in (cache, exact))
    assert given.dtype == torch.float32
    assert (given - expected).abs().max() < 0.05 * expected.abs().max()


def test_queries_and_keys_wider_than_values():
    """Rotary embeddings kept in float32."""
    model, plain = models.build("llama", torch.bfloat16), models.build("llama", torch.bfloat16)

    class Wide(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return tuple(x.float() for x in self.inner(*args, **kwargs))

    model.model.rotary_emb = Wide(plain.model.rotary_emb)
    cache, stock = ra.ReasonAllocCache(model, FULL), DynamicCache(config=plain.config)
    for ids in (models.prompt(20), models.prompt(1)):
        given, expected = models.step(model, cache, ids), models.step(plain, stock, ids)
        assert given.dtype == torch.bfloat16
        torch.testing.assert_close(given, expected, rtol=0.1, atol=0.1)


def test_mixed_precision_of_accelerate():
    accelerate = pytest.importorskip("accelerate")
    model, state = models.build("llama"), accelerate.state.AcceleratorState
    state._reset_state(reset_partial_state=True)
    try:
        prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
        with ra.install(prepared, SMALL) as session:
            generate(prepared)
    finally:
        state._reset_state(reset_partial_state=True)
    assert session.last_cache.stats()["evicted"]
    assert session.last_cache.pool.core.format == "bfloat16"


# ---- Compiled models -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_compiled_forward(name, attention):
    torch._dynamo.reset()
    model = models.build(name)
    model.set_attn_implementation(attention)
    expected, (small, _) = generate(model), with_cache(model, SMALL)
    model.forward = torch.compile(model.forward, backend="eager")
    assert torch.equal(with_cache(model)[0], expected)
    assert torch.equal(with_cache(model, SMALL)[0], small)
    assert torch.equal(generate(model), expected)  # a stock cache while our attention is on


# ---- Caches in the wrong place ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 4}])
def test_a_cache_of_another_model_of_one_shape(changes):
    model, other = models.build("llama"), models.build("llama", seed=1, **changes)
    cache = ra.ReasonAllocCache(model, FULL)
    ra.ReasonAllocCache(other, FULL)
    with pytest.raises(ValueError, match=r"made for a LlamaForCausalLM .* used by another model"):
        models.step(other, cache, models.prompt(5))
    assert cache.get_seq_length() == 0
    models.step(model, cache, models.prompt(5))


def encoder_decoder(name):
    small = {"vocab_size": models.VOCAB, "d_model": 32, "decoder_layers": 3, "encoder_layers": 2, "init_std": 0.3,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
             "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**small, forced_eos_token_id=None)
    head = "MTModel" if name == "Marian" else "ForConditionalGeneration"
    return getattr(transformers, name + head)(config).eval()


@pytest.mark.parametrize("name", ["Bart", "MBart", "Pegasus"])
def test_encoder_decoders(name):
    """Our cache takes self-attention; cross-attention needs one of its own, which a session adds."""
    model = encoder_decoder(name)
    how = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "num_beams": 1}
    ids = models.prompt(12, rows=2)
    expected = model.generate(ids, **how)
    cache = ra.ReasonAllocCache(model, FULL)
    both = EncoderDecoderCache(cache, DynamicCache(config=model.config))
    assert torch.equal(model.generate(ids, **how, **cache_argument(both)), expected)
    assert cache.get_seq_length() == 20
    with ra.install(model, FULL) as session:
        assert torch.equal(model.generate(ids, **how), expected)
        assert session.last_cache.get_seq_length() == 20
    with ra.install(model, ra.Config(method="rkv", budget=8, interval=4, window=2)) as session:
        model.generate(ids, **how)
        assert session.last_cache.stats()["evicted"]
    with pytest.raises((RuntimeError, ValueError), match="cross-attention"):
        model.generate(ids, **how, **cache_argument(ra.ReasonAllocCache(model, FULL)))


@pytest.mark.parametrize(
    "name",
    ["Bart", "MBart", "Marian", "Pegasus", "Blenderbot", "BlenderbotSmall", "PLBart", "BigBirdPegasus"],
)
def test_padding_of_an_encoder(name):
    """It is not the decoder's: not even in the pass in which both have as many columns."""
    model = encoder_decoder(name)
    ids = models.prompt(12, rows=4)
    mask = torch.ones_like(ids)
    for row in range(4):
        mask[row, 6 + row :] = 0
    how = {"attention_mask": mask, "max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "num_beams": 1}
    expected = model.generate(ids * mask, **how)
    with ra.install(model, FULL) as session:
        assert torch.equal(model.generate(ids * mask, **how), expected)
        assert session.last_cache.stats()["slots"] == [[[20] * 4] * 3] * 4


def test_prefix_tuning_is_refused():
    peft = pytest.importorskip("peft")
    model = models.build("llama")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    wrapped = peft.get_peft_model(model, config)
    for make in (ra.install, ra.ReasonAllocCache):
        with pytest.raises(ValueError, match="prefix tuning fills the cache"):
            make(wrapped, FULL)
    assert model.config._attn_implementation == "sdpa"
    assert "generate" not in vars(model)


# ---- Layers that share keys ------------------------------------------------------------------------------------------


def sharing(name, **changes):
    kinds = ["sliding_attention", "full_attention", "full_attention"] * 2 + ["sliding_attention", "full_attention"]
    extra = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": models.VOCAB, "sliding_window": 8,
             "layer_types": kinds, "num_hidden_layers": 8, "num_kv_shared_layers": 2, "head_dim": 16}  # fmt: skip
    if name == "Gemma4":
        extra |= {"global_head_dim": 32}
    else:
        extra |= {"laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 8, "altup_num_inputs": 2,
                  "intermediate_size": [48] * 8}  # fmt: skip
    config = getattr(transformers, f"{name}TextConfig")(**models._COMMON | extra | changes)
    return models.seeded(getattr(transformers, f"{name}ForCausalLM"), config)


@pytest.mark.parametrize("name", ["Gemma3n", "Gemma4"])
def test_layers_that_read_others_keys(name):
    if not hasattr(transformers, f"{name}ForCausalLM"):
        pytest.skip(f"no {name} in this transformers")
    model = sharing(name)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (40, 23)])
    expected = generate(model, ids, attention_mask=mask)
    given, cache = with_cache(model, ids=ids, attention_mask=mask)
    assert torch.equal(given, expected)
    assert cache.stats()["layers"] == [1, 2, 4]  # layer 5 keeps every token for layer 7
    given, cache = with_cache(model, SMALL, ids, attention_mask=mask)
    assert cache.stats()["evicted"] and cache.layers[5].get_seq_length() == 69
    alone, _ = with_cache(model, SMALL, ids[1:, 17:])
    assert torch.equal(given[1, 40:], alone[0, 23:])
    assert list(measure(model, ids[:1])) == [1, 2, 4]
    assert len(ra.profile(model, models.Words(), ["some words"], max_new_tokens=2, progress=False).demand) == 3


@pytest.mark.parametrize(
    ("name", "shared", "last", "budgeted"),
    [
        ("Gemma3n", 0, ["sliding_attention", "full_attention"], [1, 2, 4, 5, 7]),
        ("Gemma4", 0, ["sliding_attention", "full_attention"], [1, 2, 4, 5, 7]),
        ("Gemma3n", 1, ["full_attention", "sliding_attention"], [1, 2, 4, 5, 6]),  # no reader has full attention
    ],
)
def test_a_layer_that_none_reads_has_a_budget(name, shared, last, budgeted):
    """transformers 5.24 says that the last layer of each kind stores keys for others, whether there are any or not."""
    if not hasattr(transformers, f"{name}ForCausalLM"):
        pytest.skip(f"no {name} in this transformers")
    kinds = ["sliding_attention", "full_attention", "full_attention"] * 2 + last
    model = sharing(name, num_kv_shared_layers=shared, layer_types=kinds)
    if not DynamicCache(config=model.config).layers:
        pytest.skip("this transformers makes no cache layers where none is shared")
    expected = generate(model)
    given, cache = with_cache(model)
    assert torch.equal(given, expected)
    assert cache.stats()["layers"] == budgeted
    assert with_cache(model, SMALL)[1].stats()["evicted"]


@pytest.mark.parametrize("shared", [0, 2])
def test_an_assistant_that_reads_the_models_keys(shared):
    """Its drafts may be worse for it, the text is not."""
    if not hasattr(transformers, "Gemma4AssistantForCausalLM"):
        pytest.skip("no assistant of Gemma 4 in this transformers")
    model = sharing("Gemma4", num_kv_shared_layers=shared)
    text = {**models._COMMON, "model_type": "gemma4_text", "sliding_window": 8, "head_dim": 16, "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2, "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}  # fmt: skip
    config = transformers.Gemma4AssistantConfig(text_config=text, backbone_hidden_size=32)
    expected = generate(model)
    try:
        assistant = transformers.Gemma4AssistantForCausalLM(config).eval()
        assistant.generation_config.num_assistant_tokens = 3
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assert torch.equal(generate(model, assistant_model=assistant), expected)
    except (TypeError, ValueError) as error:
        pytest.skip(f"not in this transformers: {error}")
    given, _ = with_cache(model, assistant_model=assistant)
    assert torch.equal(given, expected)


# ---- Results ---------------------------------------------------------------------------------------------------------


def test_outputs_name_the_cache():
    model = models.tiny()
    cache = ra.ReasonAllocCache(model, SMALL)
    out = generate(model, return_dict_in_generate=True, **cache_argument(cache))
    assert cache_of(out) is cache
