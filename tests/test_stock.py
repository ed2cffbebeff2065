"""Chains of the full cache beside those of transformers' cache, at the start of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accuracy import command, folder, task  # noqa: F401  (fixtures)
from transformers import AutoTokenizer

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.hf.attention import is_active, using
from reasonalloc.lab import models
from reasonalloc.lab.evaluate import stock

PROMPTS = ["w1 w2 w3 w4 w5", "w4 w2", "w9 w9 w9"]


@pytest.fixture(params=["float32", "bfloat16"])
def pair(request, folder):  # noqa: F811
    model, tokenizer, _ = models.load(folder, request.param)
    return model, tokenizer


def test_they_are_the_same(pair):
    model, tokenizer = pair
    assert stock.differences(model, tokenizer, PROMPTS) == []
    assert not is_active(model)
    with using(model):
        assert stock.differences(model, tokenizer, PROMPTS) == []
        assert is_active(model)


def test_a_fault_is_told(pair, monkeypatch):
    """A cache that evicts stands in for a full one that is wrong."""
    model, tokenizer = pair
    monkeypatch.setattr(stock, "Config", lambda method: ra.Config(method="streaming", budget=3, window=2))
    monkeypatch.setattr(stock, "ends", lambda *_: frozenset())
    with torch.no_grad():
        for x in model.parameters():
            x.mul_(4.0)  # so that answers depend on what was read
    found = stock.differences(model, tokenizer, PROMPTS)
    assert 1 <= len(found) <= stock.PROBLEMS
    assert all("than with transformers' cache from token" in x for x in found)


def test_level_logits_may_be_either():
    logits = torch.tensor([1.0, 1.001, -3.0, 0.0])
    assert stock._are_level(logits, 0, 1, 2e-3) and not stock._are_level(logits, 0, 3, 2e-3)
    assert stock._first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert stock._first_difference([1, 2, 3], [1, 2, 3]) is None


def test_an_evaluation_says_so(folder, task, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert AutoTokenizer.from_pretrained(folder)
    assert main(command(folder, task)) == 0
    runs = json.loads(Path("out/runs.json").read_text())
    assert [x["differences"] for x in runs] == [[]]
    Path("out/runs.json").write_text(json.dumps([{**runs[0], "differences": ["another answer"]}]))
    assert main([*command(folder, task), "--json", "found.json"]) == 0
    assert json.loads(Path("found.json").read_text())["warnings"][0] == "another answer"
