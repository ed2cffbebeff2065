"""The Python API for studies: evaluate, load, supports; figures of caches and sessions; pictures."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import threading
from pathlib import Path

import pytest
import torch
from accuracy import folder, task  # noqa: F401  (fixtures)
from models import build, prompt, tiny
from transformers import AutoConfig

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.hf import forward as forward_module
from reasonalloc.hf.attention import is_active
from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.evaluate.study import Study

PNG = b"\x89PNG"


# ---- studies ----


@pytest.fixture
def studied(folder, task):  # noqa: F811
    pytest.importorskip("scipy")
    pytest.importorskip("math_verify")
    pytest.importorskip("matplotlib")
    return {"task": task, "methods": ["full", "rkv"], "budgets": [24], "max_new_tokens": 20, "progress": False}


def test_results_are_those_of_the_command(folder, studied, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    named = ra.evaluate(folder, **studied)
    given = ra.evaluate(*ra.load(folder), **studied)
    command = ["evaluate", "accuracy", "--model", folder, "--task", studied["task"], "--methods", "full,rkv"]
    assert main([*command, "--budgets", "24", "--max-new-tokens", "20", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    for found in (named, given):
        assert [x.cell for x in found.rows] == ["full", "rkv 24"] == [x["cell"] for x in rows]
        assert [x.scores for x in found.rows] == [x["scores"] for x in rows]
        assert [x.mean_bytes for x in found.rows] == [x["mean_bytes"] for x in rows]
        assert len(found.chains) == 2 * found.rows[0].problems and found.folder is None
    assert {x.name for x in tmp_path.iterdir()} <= {"accuracy-out", "cache"}


def test_a_study_shows_itself(folder, studied, tmp_path):  # noqa: F811
    found = ra.evaluate(folder, **studied, folder=tmp_path / "kept")
    text = repr(found)
    assert "rkv 24: " in text and "warning: " in text and len(text) < 1000
    assert len(repr(found.summary)) < 300
    html = found._repr_html_()
    assert html.count("<tr>") == 3 and "<td" in html and "<b>Warning:</b>" in html
    assert "rkv" in found.markdown()
    figure = found.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG) and figure._repr_png_().startswith(PNG)
    found.save(tmp_path / "saved")
    assert {x.name for x in (tmp_path / "saved").iterdir()} == {"accuracy.json", "accuracy.md", "accuracy.png"}
    lines = (tmp_path / "kept" / "generations.jsonl").read_bytes()
    assert ra.evaluate(folder, **studied, folder=tmp_path / "kept").rows == found.rows
    assert (tmp_path / "kept" / "generations.jsonl").read_bytes() == lines  # gone on there, with nothing to make


def test_as_a_table_of_pandas(folder, studied):  # noqa: F811
    pytest.importorskip("pandas")
    found = ra.evaluate(folder, **studied)
    table = found.to_pandas()
    assert list(table["method"]) == ["full", "rkv"] and table["budget"][1] == 24
    assert list(table["accuracy"]) == [x.accuracy.mean for x in found.rows]
    assert (table["low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()
    chains = found.to_pandas(chains=True)
    assert len(chains) == len(found.chains) and set(chains["cell"]) == {"full", "rkv 24"}


def test_settings_of_all_methods(folder, studied):  # noqa: F811
    plain = ra.evaluate(folder, **studied)
    other = ra.evaluate(folder, **studied, config={"interval": 4, "window": 4})
    assert plain.rows[0].mean_bytes == other.rows[0].mean_bytes
    assert plain.rows[1].mean_bytes > other.rows[1].mean_bytes


def test_settings_that_methods_have_and_the_full_cache_has_not(folder, studied, tmp_path):  # noqa: F811
    """What it cannot have is left out for it; a method that takes no size is one row."""
    found = ra.evaluate(folder, **studied, config={"recall": True})
    assert [x.cell for x in found.rows] == ["full", "rkv 24 recall"]
    gates = tmp_path / "gates.tsv"
    gates.write_text("0.5 0.1\n" * 3)
    own = studied | {"methods": ["full", "rlkv"], "config": {"options": {"gates": str(gates)}}}
    assert [x.cell for x in ra.evaluate(folder, **own).rows] == ["full", "rlkv"]
    own = studied | {"methods": ["H2O", "h2o"], "config": {"options": {"recent": 0.25}}}
    assert [x.cell for x in ra.evaluate(folder, **own).rows] == ["h2o 24"]


def test_chains_are_those_of_the_table(folder, studied, tmp_path):  # noqa: F811
    both = ra.evaluate(folder, **studied, folder=tmp_path)
    fewer = ra.evaluate(folder, **studied | {"problems": 1}, folder=tmp_path)
    assert len(fewer.chains) == sum(x.problems for x in fewer.rows) < len(both.chains)


def test_a_folder_is_free_after_an_error(folder, studied, tmp_path, monkeypatch):  # noqa: F811
    """In the same interpreter, while the error is still held, as a notebook does."""
    errors = []
    for broken in ("with_wave", "_generate", "summary"):
        with monkeypatch.context() as patch:
            patch.setattr(Study, broken, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError) as error:
                ra.evaluate(folder, **studied, folder=tmp_path)
        errors.append(error.value)
    with pytest.raises(ValueError, match="other settings") as error:
        ra.evaluate(folder, **studied | {"max_new_tokens": 10, "folder": tmp_path})
    with pytest.raises(ValueError, match="made with other cache settings"):
        ra.evaluate(folder, **studied, folder=tmp_path, config={"interval": 4})
    assert len(ra.evaluate(folder, **studied, folder=tmp_path).rows) == 2 and errors and error


def test_bad_studies(folder, studied):  # noqa: F811
    model = tiny()
    for arguments, changes, told in [
        ((folder,), {"methods": "rkv"}, "must be a list"),
        ((folder,), {"methods": ["nosuch"]}, "'nosuch' is unknown"),
        ((folder,), {"budgets": [4]}, "budget must be above the window"),
        ((folder,), {"config": {"budget": 3}}, "config gives budget"),
        ((folder,), {"task": "nosuch"}, "task 'nosuch' is unknown"),
        ((folder,), {"samples": 2}, "temperature above 0"),
        ((folder,), {"samples": 0}, "samples must be at least 1, got 0"),
        ((folder,), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ((folder,), {"problems": 0}, "number of problems must be at least 1, got 0"),
        ((folder,), {"methods": []}, "at least one, got none"),
        ((folder,), {"budgets": 24}, "budgets must be a list, got 24"),
        ((model,), {}, "needs its tokenizer"),
        ((folder, object()), {}, "has its own tokenizer"),
    ]:
        with pytest.raises(ValueError, match=told):
            ra.evaluate(*arguments, **(studied | changes))


# ---- whether a model can have a cache ----


def test_supported():
    found = ra.supports(tiny())
    assert found and found.state == "supported" and found.reasons == () and not found.checked
    model = tiny()
    found = ra.supports(model, check=True)
    assert found and found.checked and "logits within" in str(found)
    assert not is_active(model)


def test_not_supported(tmp_path):
    refused = AutoConfig.for_model("falcon")
    found = ra.supports(refused)
    assert not found and found.state == "refused" and "AttentionInterface" in found.reasons[0]
    found = ra.supports(build("mistral-sliding"))
    assert not found and "no layer has full attention" in str(found)
    AutoConfig.for_model("gemma2").save_pretrained(tmp_path)
    found = ra.supports(str(tmp_path))
    assert found and found.state == "limited" and "sliding window" in found.reasons[0]
    assert ra.supports(AutoConfig.for_model("clip_text_model")).state == "unknown"
    with pytest.raises(ValueError, match="give the model itself"):
        ra.supports(refused, check=True)


# ---- figures ----


@pytest.fixture
def figures():
    model, config = tiny(), ra.Config("rkv", budget=24, interval=8, window=4)
    cache = ra.ReasonAllocCache(model, config)
    model.generate(prompt(60), max_new_tokens=20, do_sample=False, **cache_argument(cache))
    return cache.stats()


def test_figures_are_a_mapping_and_attributes(figures):
    assert isinstance(figures, ra.CacheStats) and isinstance(figures, dict)
    assert figures.bytes == figures["bytes"] > 0 and figures.slots == figures["slots"]
    assert set(figures) == set(ra.CacheStats.__annotations__) <= set(dir(figures))
    assert json.loads(json.dumps(figures)) == figures
    assert pickle.loads(pickle.dumps(figures)) == copy.deepcopy(figures) == figures
    assert isinstance(copy.deepcopy(figures), ra.CacheStats)
    assert len(repr(figures)) < 200 and "rkv" in repr(figures) and "MiB" in repr(figures)
    with pytest.raises(AttributeError, match="no 'byte'"):
        figures.byte  # noqa: B018


def test_figures_do_not_change(figures):
    before = dict(figures)
    for change in (
        lambda: figures.update(bytes=0),
        lambda: figures.__setitem__("bytes", 0),
        lambda: figures.pop("bytes"),
        lambda: setattr(figures, "bytes", 0),
        lambda: figures.__delitem__("bytes"),
        figures.clear,
    ):
        with pytest.raises(TypeError, match="dict"):
            change()
    assert figures == before


def test_caches_of_a_session():
    model, config = tiny(), ra.Config("rkv", budget=24, interval=8, window=4)
    with ra.install(model, config) as session:
        assert session.caches == [] and session.history == []
        model.generate(prompt(60), max_new_tokens=4, do_sample=False)
        first = session.last_cache
        for _ in range(2):
            model.generate(prompt(40), max_new_tokens=4, do_sample=False)
        assert session.caches == [first, session.last_cache]  # nobody holds the second one: its memory is free
        assert [x.steps for x in session.history] == [4, 4, 4]
        assert session.history[0] == first.stats() and session.history[2] == session.last_cache.stats()
        assert session.history[0].slots != session.history[1].slots or session.history[0].evicted > 0
    assert len(session.history) == 3


def test_a_session_in_two_threads(monkeypatch):
    """A generate that begins amid another one leaves that one's cache alone; its figures come when it has ended."""
    model, texts, made = tiny(), {"long": prompt(60), "short": prompt(40)}, {}
    config = ra.Config("reasonalloc", budget=24, interval=8, window=4)

    def work(name, tokens):
        made[name] = model.generate(texts[name], max_new_tokens=tokens, do_sample=False)

    prompt_attention = forward_module.prompt_attention

    def attention(*args):
        monkeypatch.setattr(forward_module, "prompt_attention", prompt_attention)
        beside = threading.Thread(target=work, args=("short", 4))
        beside.start()
        beside.join()
        return prompt_attention(*args)

    with ra.install(model, config):
        work("long", 20), work("short", 4)
    alone = dict(made)
    with ra.install(model, config) as session:
        monkeypatch.setattr(forward_module, "prompt_attention", attention)
        work("long", 20)
        assert all(torch.equal(made[name], alone[name]) for name in texts)
        assert [x.steps for x in session.history] == [20, 4]
        assert session.caches == [session.last_cache] and session.last_cache.stats().steps == 4
        work("short", 4)
        assert [x.steps for x in session.history] == [20, 4, 4] and len(session.caches) == 1


def test_the_wave_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    wave = ra.WaveProfile((3.0, 1.0, 2.0), (0, 2, 5), {}, source={"model": "mine"})
    figure = wave.plot(tmp_path / "w.png")
    (axis,) = figure.axes
    assert (tmp_path / "w.png").read_bytes().startswith(PNG) and "mine" in axis.get_title(loc="left")
    assert [x.get_height() for x in axis.patches] == [3.0, 1.0, 2.0]
    assert not list(Path(tmp_path).glob("*.json"))


def test_it_is_said_once_that_the_wave_was_measured(caplog, monkeypatch):
    model, config = tiny(), ra.Config("reasonalloc", budget=24, interval=8, window=4)
    forward_module._warned.discard(model)
    caplog.set_level(logging.INFO, logger="reasonalloc")
    for _ in range(2):
        cache = ra.ReasonAllocCache(model, config)
        model.generate(prompt(60), max_new_tokens=4, do_sample=False, **cache_argument(cache))
    assert [x.getMessage() for x in caplog.records if "measured on the prompt" in x.getMessage()] == [
        "the layer wave was measured on the prompt; ra.profile measures it once for a model"
    ]
