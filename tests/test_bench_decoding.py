"""The benchmarks of a model that decodes: caches filled, equal memory, kvpress."""

from __future__ import annotations

import json
from pathlib import Path

import benches
import models
import pytest
import torch
from transformers.cache_utils import DynamicCache

from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.bench import (
    decoding,
    equal_memory,
    kvpress_peer,
    steps,
)
from reasonalloc.lab.bench.progress import silent


@pytest.fixture(scope="module")
def subject():
    return benches.subject()


@pytest.mark.parametrize("name", ["dynamic", "static", "full"])
def test_filled_caches_go_on_as_a_model_that_read_the_text(subject, name):
    decoder = decoding.Decoder(subject, name, rows=2, room=80)
    decoder.fill(30)
    decoder.fill(60)
    decoder.step()
    cache = DynamicCache(config=subject.stock.config)
    with torch.no_grad():
        subject.stock(input_ids=models.prompt(300)[:, :60], **cache_argument(cache))
        want = subject.stock(input_ids=torch.ones(1, 1, dtype=torch.long), **cache_argument(cache)).logits[:, -1]
    assert decoder.tokens.tolist() == [[int(want.argmax())]] * 2
    assert int(decoder.cache.get_seq_length()) == decoder.length == 61


def test_a_budget_is_filled_to_its_steady_state(subject):
    decoder = decoding.Decoder(subject, "rkv-32", rows=2, room=0)
    decoder.fill(2000)
    slots = torch.tensor(decoder.cache.stats()["slots"])
    assert decoder.cache.stats()["routings"] >= 4
    assert slots.float().mean() <= 32 + decoding.INTERVAL
    assert equal_memory.row_bytes(subject, "rkv-32", 10_000) * 2 >= decoder.bytes()


def test_weights_are_shared(subject):
    assert subject.stock.lm_head.weight is subject.ours.lm_head.weight
    assert subject.stock.config._attn_implementation != subject.ours.config._attn_implementation


def test_overhead_watches_and_stops_watching(subject):
    before = steps.ALL_ATTENTION_FUNCTIONS["sdpa"]
    (row,) = steps.overhead(subject, [1], ["dynamic"], 16, 2)
    assert steps.ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert row["update_us"] > 0 and row["attention_us"] > 0


# ---- Equal memory ----------------------------------------------------------------------------------------------------


def test_curves():
    curve = equal_memory.Curve([(16, 1.0), (116, 3.0)])
    assert [curve.at(x) for x in (0, 16, 66, 116, 1000)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert curve.mean(116) == pytest.approx(2.0)
    assert curve.mean(216) == pytest.approx(2.5)


def test_batches():
    assert equal_memory.batches(10) == [1, 2, 4, 8, 10]
    assert equal_memory.batches(8) == [1, 2, 4, 8]
    assert equal_memory.batches(0) == []


def test_a_limit_that_fits_nothing(subject):
    (row,) = equal_memory.equal_memory(subject, ["static"], [256], 1000, 8, 1, False, silent)
    assert row["fits_rows"] == 0 and row["best"] is None


def test_whole_chains(subject):
    rows = list(equal_memory.equal_memory(subject, ["static", "rkv-32"], [64], 10**6, 2, 1, True, silent))
    assert [[x["rows"] for x in row["tried"]] for row in rows] == [[1, 2]] * 2


# ---- kvpress ---------------------------------------------------------------------------------------------------------


def test_no_kvpress(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kvpress_peer.interpreter(None) is None
    with pytest.raises(ValueError, match="no such file"):
        kvpress_peer.interpreter("nowhere/python")


@pytest.fixture
def weights(tmp_path, monkeypatch):
    (tmp_path / "weights.gguf").touch()
    monkeypatch.setattr(kvpress_peer, "embedded_folder", lambda: tmp_path)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_kvpress_is_asked_by_its_own_interpreter(tmp_path, weights):
    order = tmp_path / "order"
    python = script(tmp_path / "python", f"cat > {order}; echo loading; echo '{{\"rows\": 2}}'")
    assert kvpress_peer.theirs(python, torch.ones(2, 3, dtype=torch.long), 5, "knorm") == {"rows": 2}
    told = json.loads(order.read_text())
    assert (told["press"], told["steps"], told["gguf_file"]) == ("knorm", 5, "weights.gguf")


def test_kvpress_that_fails_says_why(tmp_path, weights):
    python = script(tmp_path / "python", "echo first >&2; echo 'no kvpress here' >&2; exit 1")
    with pytest.raises(RuntimeError, match="no kvpress here"):
        kvpress_peer.theirs(python, torch.ones(1, 3, dtype=torch.long), 5, None)


@pytest.mark.parametrize("name", ["dynamic", "full", "rkv-32"])
def test_ours_in_the_setting_of_kvpress(monkeypatch, name):
    monkeypatch.setattr(kvpress_peer, "load", lambda name: (models.build("llama"), None, "tiny"))
    found = kvpress_peer.ours(models.prompt(40, rows=2).tolist(), 3, name)
    assert found["rows"] == 2 and len(found["step_seconds"]) == 3 and found["cache_bytes"] > 0
