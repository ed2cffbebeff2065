"""What tests of accuracy share: a saved model whose tokenizer knows words, a task, the command, made-up chains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import build
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from reasonalloc.lab.evaluate.accuracy import cells
from reasonalloc.lab.evaluate.records import Record, read
from reasonalloc.lab.tasks import Item

WORDS = [f"w{i}" for i in range(94)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with a tokenizer that knows words."""
    path = tmp_path_factory.mktemp("model")
    build("llama", eos_token_id=1).save_pretrained(path)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    own = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "own.jsonl"
    rows = [{"problem": " ".join(WORDS[i : i + 5 + 3 * i]), "answer": "1"} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def command(folder, task, *more, output="out"):
    return ["evaluate", "accuracy", "--model", folder, "--task", task, "--methods", "full,rkv,streaming", "--budgets",
            "24", "--interval", "8", "--max-new-tokens", "30", "--batch-size", "2", "--output", output,
            *more]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test writes into the user's folders."""
    monkeypatch.chdir(tmp_path)


def texts(path="out"):
    return {x.key: (x.text, x.finish, x.peak_bytes) for x in read(Path(path) / "generations.jsonl")}


ITEMS = [Item(str(i), "w1 w2", ("1",), "a" if i < 3 else "b") for i in range(5)]


CELLS = cells(["full", "rkv", "reasonalloc"], [24], [], {})


def record(cell, item, score, sample=0, tokens=10, finish="stop"):
    right = [True] * score + [False] * (2 - score)
    group = next((x.group for x in ITEMS if x.id == item), "")
    return Record(
        cell, "h", "asked", item, group, sample, 0, 5, tokens, finish, "", [], right, 24, None, 1, 100.0, 200, 0.5
    )
