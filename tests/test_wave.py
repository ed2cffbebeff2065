"""The layer wave: measured as defined, saved and loaded, refused where it does not belong."""

import json
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import oracle
import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.profile import measure
from reasonalloc.policy.wave import demand


class Chat(models.Words):
    chat_template = "yes"

    def apply_chat_template(self, messages, tokenize=False, add_generation_prompt=True):
        assert not tokenize
        assert add_generation_prompt
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


PROMPTS = ["What is 12 + 7 * 3? Think step by step.", "Name three primes and say why."]


def profile(model, prompts=PROMPTS, tokenizer=None, **options):
    return ra.profile(
        model, tokenizer or models.Words(), prompts, **{"max_new_tokens": 20, "progress": False, **options}
    )


# ---- Demand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.5, 0.93, 0.99])
@pytest.mark.parametrize(
    ("heads", "group", "window", "n"), [(1, 1, 1, 1), (2, 3, 8, 50), (3, 1, 64, 64), (1, 4, 5, 200)]
)
def test_demand_is_the_published_one(rho, heads, group, window, n):
    generator = torch.Generator().manual_seed(n)
    queries = torch.randn(heads * group, window, 16, generator=generator) * 2
    keys = torch.randn(heads, n, 16, generator=generator)
    assert demand(queries, keys, rho) == oracle.demand(queries, keys, rho)


def test_demand_of_known_rows():
    keys = torch.zeros(1, 100, 4)
    assert demand(torch.randn(1, 1, 4), keys, 0.925) == 93  # uniform attention
    keys[0, 17] = 100
    assert demand(torch.ones(1, 1, 4), keys, 0.93) == 1  # all on one token


def test_demand_of_a_model(monkeypatch):
    """`measure` against queries and keys taken from the model."""
    for name in ("llama", "qwen3", "gemma3"):
        model, seen = models.build(name), {}

        def capture(module, query, key, value, mask, seen=seen, **kwargs):
            seen[module.layer_idx] = query[0].double().numpy(), key[0].double().numpy()
            return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

        text = models.prompt(90)
        given = measure(model, text, 0.9, 16)
        AttentionInterface.register("test-capture", capture)
        AttentionMaskInterface.register("test-capture", sdpa_mask)
        model.set_attn_implementation("test-capture")
        with torch.no_grad():
            model(text)
        assert list(given) == ([2, 5] if name == "gemma3" else [0, 1, 2])
        for layer, value in given.items():
            queries, keys = seen[layer]
            assert abs(value - oracle.demand(queries[:, -16:], keys, 0.9)) <= 1


def test_demand_where_attention_has_sinks():
    """What a sink takes of a query no token has, so that it counts less in the mean: by the model's own weights."""
    model, text = models.gpt_oss(torch.tensor([-2.0, 1.0, 4.0, 6.0])), models.prompt(60)
    with torch.no_grad():
        weights = model(text, output_attentions=True).attentions[1][0]
    mass = weights.double().mean((0, 1)).sort(descending=True).values.cumsum(0)
    wanted = int((mass < 0.93 * mass[-1]).sum()) + 1
    assert measure(model, text) == {1: wanted}
    cache = ra.ReasonAllocCache(model, ra.Config(method="reasonalloc-wave", budget=24, interval=8, window=4))
    models.step(model, cache, text)
    assert cache.stats()["wave"] == "measured on the first prefill"
    assert cache.cutter.budgets.demand == [[wanted]]


# ---- Profiles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [models.Words(), Chat()])
def test_a_profile_is_the_mean_over_prompts_and_their_chains(tokenizer):
    model = models.tiny()
    wave = profile(model, tokenizer=tokenizer)
    alone = [profile(model, [p], tokenizer=tokenizer) for p in PROMPTS]
    assert wave.demand == pytest.approx(np.mean([a.demand for a in alone], 0).tolist())
    assert wave.layers == (0, 1, 2)
    text = PROMPTS[0] if tokenizer.__class__ is models.Words else f"<user>{PROMPTS[0]}<assistant>"
    ids = tokenizer(text).input_ids
    chain = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert list(measure(model, chain).values()) == list(alone[0].demand)
    assert model.config._attn_implementation != "reasonalloc"  # profiling leaves nothing behind


def test_profiles_are_deterministic():
    one, two = (profile(models.tiny("qwen3")) for _ in range(2))
    assert replace(one, source={}) == replace(two, source={})


def test_a_profile_says_where_it_comes_from():
    wave = profile(models.tiny(), rho=0.8)
    assert wave.rho == 0.8
    assert wave.schema == 1
    assert wave.source["prompt_count"] == 2
    assert wave.source["max_new_tokens"] == 20
    assert {"model", "config", "tokenizer", "prompts", "torch", "transformers", "created"} <= set(wave.source)
    assert wave.model == fingerprint(models.tiny())
    assert wave.model["model_type"] == "llama"
    assert wave.model["kv_heads"] == 2


def test_a_higher_rho_demands_more():
    waves = [profile(models.tiny(), rho=rho).demand for rho in (0.5, 0.8, 0.95)]
    assert (np.diff(waves, axis=0) > 0).all()


@pytest.mark.parametrize("active", [False, True])
def test_profiling_keeps_the_models_attention(active):
    model = models.tiny("gemma3")
    if active:
        ra.ReasonAllocCache(model, ra.Config(method="rkv", budget=24))
    before = model.config._attn_implementation
    profile(model)
    assert model.config._attn_implementation == before == ("reasonalloc" if active else "sdpa")


def test_an_error_while_profiling_keeps_the_models_attention():
    model = models.build("llama")

    def fail(*_):
        handle.remove()
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        measure(model, models.prompt(20))
    assert model.config._attn_implementation == "sdpa"


def test_one_prompt_as_a_text():
    wave = profile(models.tiny(), PROMPTS[0])
    assert wave.source["prompt_count"] == 1


@pytest.mark.parametrize("shown", [True, False])
def test_progress_goes_to_standard_error(capsys, shown):
    profile(models.tiny(), max_new_tokens=2, progress=shown)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert bool(captured.err) == shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "1 to 8 prompts, got 0"),
        ({"prompts": ["x"] * 9}, "1 to 8 prompts, got 9"),
        ({"rho": 0.0}, "rho"),
        ({"rho": 1.0}, "rho"),
        ({"rho": float("nan")}, "rho"),
        ({"queries": 0}, "queries"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        profile(models.tiny(), **options)


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    model = models.tiny()
    wave = profile(model)
    for path in (tmp_path / "wave.json", str(tmp_path / "other.json")):
        wave.save(path)
        again = ra.WaveProfile.load(path)
        assert again == wave
        assert json.loads(Path(path).read_text())["schema"] == 1
    outputs = []
    for given in (wave, again):
        config = ra.Config(method="reasonalloc", budget=24, interval=8, window=4, profile=given)
        outputs.append(
            model.generate(
                models.prompt(60),
                max_new_tokens=20,
                do_sample=False,
                **cache_argument(ra.ReasonAllocCache(model, config)),
            )
        )
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "not json", "is not a wave profile"),
        (lambda text: "[1, 2]", "is not a wave profile of schema 1, got 'list'"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 1, got 2"),
        (lambda text: text.replace('"schema"', '"version"'), "schema 1, got None"),
        (lambda text: text.replace('"rho"', '"row"'), "has the fields"),
        (lambda text: json.dumps({**json.loads(text), "demand": [1.0]}), "one demand a layer, got 1 for 3"),
        (lambda text: json.dumps({**json.loads(text), "demand": []}), "one demand a layer"),
        (lambda text: json.dumps({**json.loads(text), "demand": [1, 2, -3]}), "positive"),
        (lambda text: json.dumps({**json.loads(text), "demand": [1, 2, "3"]}), "demand.2. must be a number, got .3."),
        (lambda text: json.dumps({**json.loads(text), "demand": [1, 2, float("nan")]}), "positive"),
        (lambda text: json.dumps({**json.loads(text), "demand": [1, 2, float("inf")]}), "positive"),
        (lambda text: json.dumps({**json.loads(text), "demand": None}), ""),
        (lambda text: json.dumps({**json.loads(text), "model": [1]}), ""),
        (lambda text: text[: len(text) // 2], "is not a wave profile"),
        (lambda text: "\x80", "is not a wave profile"),
    ],
)
def test_files_that_are_no_profiles(tmp_path, change, message):
    path = tmp_path / "wave.json"
    ra.WaveProfile((1.0, 2.0, 3.0), (0, 1, 2), fingerprint(models.tiny())).save(path)
    path.write_text(change(path.read_text()), encoding="latin-1")
    with pytest.raises(ValueError, match=message or None):
        ra.WaveProfile.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        ra.WaveProfile.load(tmp_path / "none.json")


def test_a_profile_fits_models_of_its_shape_only():
    wave = profile(models.tiny())
    wave.check(models.build("llama", seed=5), (0, 1, 2))  # other weights
    for change in ({"num_hidden_layers": 4}, {"num_key_value_heads": 1}, {"hidden_size": 64}):
        with pytest.raises(ValueError, match="the wave profile is of another model"):
            ra.ReasonAllocCache(models.build("llama", **change), ra.Config(budget=24, profile=wave))
    with pytest.raises(ValueError, match=r"model_type 'llama' .*'qwen2'"):
        ra.install(models.tiny("qwen2"), ra.Config(budget=24, profile=wave))
    # methods without a wave refuse it too: it was given for a reason
    with pytest.raises(ValueError, match="another model"):
        ra.ReasonAllocCache(models.tiny("qwen2"), ra.Config(method="rkv", budget=24, profile=wave))


@pytest.mark.slow
def test_the_real_models_wave(smol):
    """SmolLM2: high in the first layers, a trough in the middle."""
    model, tokenizer = smol
    wave = ra.profile(model, tokenizer, [models.MATH_TEXT], max_new_tokens=8, progress=False)
    values = np.array(wave.demand)
    assert len(values) == 30
    assert values[:3].mean() > 1.5 * values[10:25].mean()
    assert (values >= 1).all()


@pytest.mark.parametrize("demand", [0.0, -1.0, float("nan"), float("inf"), 10**400, "1", None])
def test_what_is_no_demand(demand):
    with pytest.raises(ValueError, match="demands must be positive numbers that a double can hold"):
        ra.WaveProfile((1.0, demand), (0, 1), {})
