"""Configs and waves in files, folders and repositories of the Hub; the Hub itself is stood in for."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from types import SimpleNamespace

import huggingface_hub
import pytest
from models import build, prompt

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.compat import cache_argument

WAVE = ra.WaveProfile((3.0, 1.5, 2.0), (0, 1, 2), {"model_type": "llama", "layers": 3}, 0.9, {"created": "then"})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of folders; calls: what it was asked."""
    root, calls = tmp_path / "hub", []

    def download(repository, file, revision=None, **options):
        calls.append((repository, file, revision, options))
        path = root / repository / (revision or "main") / file
        if not path.is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network, and not in the cache\nmore of it")
        return str(path)

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            calls.append((repo_id, private, exist_ok, self.token))
            return SimpleNamespace(repo_id=repo_id)

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id, revision=None, **options):
            target = root / repo_id / (revision or "main") / path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path_or_fileobj, target)
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return calls


CONFIGS = [
    ra.Config("rkv", budget=64),
    ra.Config("full"),
    ra.Config("reasonalloc", max_bytes="512M", profile=WAVE, alpha=0.3, keep_prompt=True, device="cpu"),
    ra.Config("RKV", ratio=0.25, scorer="importance", heads="pooled", safeguard=0.5, sinks=4, interval=32, window=4),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_comes_back(config, tmp_path, hub):
    path = config.save_pretrained(tmp_path / "new" / "folder")
    assert path.name == ra.Config.FILE
    for name in (path, path.parent, str(path)):
        assert ra.Config.from_pretrained(name) == config
    assert ra.Config.load(path) == config and not hub
    assert config.push_to_hub("me/settings", private=True, token="t").endswith("/1")
    assert ra.Config.from_pretrained("me/settings", local_files_only=True) == config
    assert hub == [
        ("me/settings", True, True, "t"),
        ("me/settings", ra.Config.FILE, None, {"local_files_only": True}),
    ]


def test_every_field_is_kept(tmp_path):
    data = json.loads(CONFIGS[2].save_pretrained(tmp_path).read_text())
    assert data["schema"] == 1 and data["profile"]["demand"] == [3.0, 1.5, 2.0] and "beta" not in data
    assert set(data) - {"schema"} <= {x.name for x in fields(ra.Config)}


def test_a_wave_comes_back(tmp_path, hub):
    path = WAVE.save_pretrained(tmp_path)
    assert ra.WaveProfile.from_pretrained(path) == ra.WaveProfile.from_pretrained(tmp_path) == WAVE
    WAVE.push_to_hub("me/wave", revision="v2")
    assert ra.WaveProfile.from_pretrained("me/wave", revision="v2") == WAVE
    for name in (str(path), path, tmp_path, str(tmp_path)):
        assert ra.Config(budget=64, profile=name).profile == WAVE
    with pytest.raises(ValueError, match=r"'me/wave' is no file .*wave\.json could not be had.*no network, and not"):
        ra.Config(budget=64, profile="me/wave")  # it is on v2 only


def test_a_named_profile_is_used(tmp_path):
    model = build("llama")
    wave = ra.WaveProfile((3.0, 1.0, 2.0), (0, 1, 2), fingerprint(model))
    named = ra.Config(budget=24, interval=8, window=4, profile=str(wave.save_pretrained(tmp_path)))
    kept = []
    for config in (named, ra.Config(budget=24, interval=8, window=4, profile=wave)):
        cache = ra.ReasonAllocCache(model, config)
        model.generate(prompt(60), max_new_tokens=20, do_sample=False, **cache_argument(cache))
        assert cache.stats()["wave"] == "profile"
        kept.append(cache.stats()["budgets"])
    assert kept[0] == kept[1]


def test_what_is_none(tmp_path, hub):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"schema": 1, "method": "rkv", "budget": "many"}')
    (tmp_path / "old.json").write_text('{"schema": 0}')
    for name, told in [
        (tmp_path / "empty", "has no reasonalloc.json"),
        (tmp_path / "none.json", "is no file, no folder"),
        ("a/b/c", "is no file, no folder"),
        ("me/nothing", "could not be had from the Hub"),
        (tmp_path / "bad.json", "budget must be a whole number"),
        (tmp_path / "old.json", "schema 1"),
    ]:
        with pytest.raises(ValueError, match=told):
            ra.Config.from_pretrained(name)
    with pytest.raises(ValueError, match="owner/name"):
        WAVE.push_to_hub("wave")
    with pytest.raises(ValueError, match="profile must be a WaveProfile"):
        ra.Config(budget=64, profile=3)


def test_options_that_are_no_json(tmp_path):
    config = ra.Config("rkv", budget=64)
    object.__setattr__(config, "options", {"x": object()})
    with pytest.raises(ValueError, match="must be numbers, texts, lists"):
        config.save(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())
