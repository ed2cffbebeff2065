"""transformers' Hub route for generation: the folder reasonalloc/integrations/hub as a local repository."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import models
import pytest
import torch
import transformers
from transformers import GenerationConfig, dynamic_module_utils

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf import compat
from reasonalloc.hf.compat import cache_argument

FOLDER = Path(ra.__file__).parent / "integrations" / "hub"


@pytest.fixture(autouse=True)
def modules_elsewhere(tmp_path, monkeypatch):
    """transformers copies the code that it runs into a cache; not the user's."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture
def model():
    return models.tiny("llama")


def hub(model, ids, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    if "generation_config" not in options:
        options = {"max_new_tokens": 40, "do_sample": False, **options}
    return model.generate(
        input_ids=ids, attention_mask=mask, custom_generate=str(FOLDER), trust_remote_code=True, **options
    )


def installed(model, ids, config, mask=None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    with ra.install(model, config):
        return model.generate(
            input_ids=ids, attention_mask=mask, **{"max_new_tokens": 40, "do_sample": False, **options}
        )


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_the_tokens_of_install(name):
    model, ids = models.tiny(name), models.prompt(40)
    config = ra.Config(budget=16, interval=8)
    ours = hub(model, ids, budget=16, interval=8)
    assert ours.tolist() == installed(model, ids, config).tolist()
    assert ours.tolist() != installed(model, ids, ra.Config(method="full")).tolist()  # the budget does something


@pytest.mark.parametrize("settings", [{"method": "full"}, {"budget": 4096}])
def test_without_eviction_the_tokens_of_plain_generate(model, settings):
    ids = models.prompt(40)
    plain = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    assert hub(model, ids, **settings).tolist() == plain.tolist()


def test_a_left_padded_batch(model):
    ids, mask = models.left_padded([models.prompt(30)[0], models.prompt(12, seed=1)[0]])
    config = ra.Config(method="rkv", budget=12, interval=4)
    batch = hub(model, ids, mask, method="rkv", budget=12, interval=4)
    assert batch.tolist() == installed(model, ids, config, mask).tolist()
    alone = hub(model, models.prompt(12, seed=1), method="rkv", budget=12, interval=4)
    assert batch[1, -40:].tolist() == alone[0, -40:].tolist()


def test_sampling_beams_and_a_generation_config(model):
    ids, config = models.prompt(30), ra.Config(method="snapkv", ratio=0.5, interval=8)
    for options in ({"do_sample": True, "temperature": 0.7}, {"num_beams": 3}):
        torch.manual_seed(0)
        ours = hub(model, ids, method="snapkv", ratio=0.5, interval=8, **options)
        torch.manual_seed(0)
        assert ours.tolist() == installed(model, ids, config, **options).tolist()
    given = GenerationConfig(max_new_tokens=7, pad_token_id=0)
    assert hub(model, ids, budget=16, generation_config=given).shape[1] == 37


def test_a_profile_by_its_file(model, tmp_path):
    wave = ra.WaveProfile((1.0, 5.0, 2.0), (0, 1, 2), fingerprint(model))
    wave.save(tmp_path / "wave.json")
    output = hub(
        model, models.prompt(40), budget=16, interval=8, profile=str(tmp_path / "wave.json"),
        return_dict_in_generate=True,
    )  # fmt: skip
    stats = compat.cache_of(output).stats()
    assert stats["wave"] == "profile" and stats["evicted"] > 0


def test_the_model_is_left_as_it_was(model):
    before = model.config._attn_implementation
    hub(model, models.prompt(20), budget=16)
    assert model.config._attn_implementation == before
    with pytest.raises(ValueError, match="exactly one of budget"):
        hub(model, models.prompt(20))
    assert model.config._attn_implementation == before


def test_a_repository_that_holds_the_weights_too(tmp_path):
    """Loaded with trust_remote_code, generate itself is replaced."""
    models.build("llama").save_pretrained(tmp_path / "repository")
    (tmp_path / "repository" / "custom_generate").symlink_to(FOLDER / "custom_generate")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "repository", trust_remote_code=True).eval()
    ids = models.prompt(40)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 20, "do_sample": False}
    ours = model.generate(input_ids=ids, budget=16, interval=8, **options)
    expected = installed(models.build("llama"), ids, ra.Config(budget=16, interval=8), max_new_tokens=20)
    assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 16, "method": "nosuch"}, "nosuch"),
        ({"budget": 16, "ratio": 0.5}, "exactly one of budget"),
        ({"budget": 16, "use_cache": False}, "use_cache"),
    ],
)
def test_what_does_not_fit_is_refused(model, options, said):
    with pytest.raises(ValueError, match=said):
        hub(model, models.prompt(20), **options)


def test_a_cache_of_ones_own_is_refused(model):
    cache = ra.ReasonAllocCache(model, ra.Config(budget=16))
    with pytest.raises(ValueError, match="past_key_values"):
        hub(model, models.prompt(20), budget=16, **cache_argument(cache))


def test_no_setting_has_the_name_of_an_option_of_generate():
    own = {field.name for field in fields(ra.Config)}
    options = set(GenerationConfig().to_dict()) | set(
        inspect.signature(transformers.GenerationMixin.generate).parameters
    )
    assert not own & options


def test_the_folder_has_what_the_hub_asks_for():
    header = (FOLDER / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert "- custom_generate" in header
    requirements = (FOLDER / "custom_generate" / "requirements.txt").read_text(encoding="utf-8").split()
    assert [x.split(">=")[0] for x in requirements] == ["reasonalloc"]
