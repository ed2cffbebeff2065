"""Batched generation: the tokens of plain transformers, rows that are on their own, records that survive a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from models import prompt, tiny
from tiny import build, kinds
from transformers import DynamicCache, GenerationConfig, cache_utils

import reasonalloc as ra
from reasonalloc.hf import decode
from reasonalloc.hf.attention import using
from reasonalloc.hf.decode import Sampling, generate, not_applied
from reasonalloc.hf.decode import chains as chains_of
from reasonalloc.hf.tokens import encode_prompt, ends
from reasonalloc.lab.evaluate.records import Record, Records, pack, read

FULL = ra.Config(method="full")
SMALL = ra.Config(method="rkv", budget=24, interval=8)


def prompts(*lengths):
    return [(str(i), prompt(n, seed=i)[0].tolist()) for i, n in enumerate(lengths)]


def chains(config, given, stop=frozenset(), name="llama", **sampling):
    made = generate(tiny(name), config, given, stop, Sampling(**{"max_new_tokens": 40, **sampling}))
    return {x.key: x for x in made}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_full_gives_the_tokens_of_transformers(name):
    made = chains(FULL, prompts(9, 9, 9), name=name)
    ra.uninstall(tiny(name))
    for i in range(3):
        ids = prompt(9, seed=i)
        out = tiny(name).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        assert made[str(i)].ids == out[0, 9:].tolist()
        assert made[str(i)].finish == "length"


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_loop_serves_stock_caches_too(name):
    """Rows of different length that end at different times, against transformers' own loop, each row alone."""
    model, given = tiny(name), prompts(9, 21, 4)
    ra.uninstall(model)
    cache = DynamicCache(config=model.config)
    free = {x.key: x.ids for x in decode.chains(model, cache, given, frozenset(), Sampling(max_new_tokens=20))}
    stop = frozenset({free["0"][7], free["2"][3]})
    cache = DynamicCache(config=model.config)
    made = {x.key: x for x in decode.chains(model, cache, given, stop, Sampling(max_new_tokens=20))}
    for key, ids in given:
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(), max_new_tokens=20, do_sample=False,
            eos_token_id=sorted(stop), pad_token_id=0,
        )  # fmt: skip
        assert made[key].ids == out[0, len(ids) :].tolist()
        assert (made[key].peak_bytes, made[key].slots) == (0, 0.0)  # a stock cache has no pages
    assert len({len(x.ids) for x in made.values()}) > 1


def test_generation_leaves_gradients_on_for_its_caller():
    steps = generate(tiny(), SMALL, prompts(9, 12), frozenset(), Sampling(max_new_tokens=3))
    next(steps)
    assert torch.is_grad_enabled()
    steps.close()


def test_padded_rows_give_what_they_give_alone():
    given = prompts(30, 5, 17)
    together = chains(SMALL, given)
    for one in given:
        alone = chains(SMALL, [one])[one[0]]
        assert together[one[0]].ids == alone.ids
        assert together[one[0]].peak_bytes == alone.peak_bytes


def test_rows_leave_as_they_end():
    given = prompts(12, 20, 7, 15)
    free = chains(SMALL, given)
    stop = frozenset({free["0"].ids[5], free["2"].ids[20]})
    made = list(generate(tiny(), SMALL, given, stop, Sampling(max_new_tokens=40)))
    for x in made:
        cut = next((i for i, token in enumerate(free[x.key].ids) if token in stop), None)
        assert x.ids == (free[x.key].ids if cut is None else free[x.key].ids[: cut + 1])
        assert x.finish == ("length" if cut is None else "stop")
    assert [len(x.ids) for x in made] == sorted(len(x.ids) for x in made)


class Steps:
    """In place of a graph, which needs a GPU: the passes themselves."""

    rows: ClassVar[list[int]] = []

    def __init__(self, model, cache):
        self.model, self.cache = model, cache

    def step(self, ids):
        positions = [[self.cache.ragged[0].core.tokens(row)] for row in range(self.cache.rows)]
        self.rows.append(len(ids))
        with torch.no_grad():
            out = self.model(ids, position_ids=torch.tensor(positions), past_key_values=self.cache, use_cache=True)
        return out.logits[:, -1]


def test_rows_that_have_ended_stay_in_a_graph_for_a_while(monkeypatch):
    monkeypatch.setattr(decode, "DecodeGraph", Steps)
    monkeypatch.setattr(decode, "why_not", lambda cache: "")
    monkeypatch.setattr(Steps, "rows", [])
    given, sampling = prompts(12, 20, 7, 15, 9), Sampling(temperature=1.0, max_new_tokens=40)
    free = {x.key: x.ids for x in generate(tiny(), SMALL, given, frozenset(), sampling)}
    stop = frozenset({free["0"][5], free["2"][15], free["3"][25]})
    want = {x.key: x for x in generate(tiny(), SMALL, given, stop, sampling)}
    counted = []
    found = list(generate(tiny(), SMALL, given, stop, sampling, progress=counted.append, graphs=True))
    assert sorted(x.key for x in found) == sorted(want)
    for x in found:
        same = ("ids", "finish", "steps", "slots", "mean_bytes", "peak_bytes", "prompt_tokens")
        assert [getattr(x, name) for name in same] == [getattr(want[x.key], name) for name in same]
    assert sum(counted) == sum(len(x.ids) for x in found)
    assert [len(x.ids) for x in found] == sorted(len(x.ids) for x in found)
    assert any(rows > now for rows, now in zip(Steps.rows, counted[1:], strict=True))
    watched: dict[str, list[int]] = {}

    def watch(logits, keys, picked):
        assert len(logits) == len(keys) == len(picked)
        for key, token in zip(keys, picked, strict=True):
            watched.setdefault(key, []).append(token)

    cache = ra.ReasonAllocCache(tiny(), SMALL)
    with using(tiny()):
        list(chains_of(tiny(), cache, given, stop, sampling, watch=watch, graphs=True))
    assert watched == {x.key: x.ids for x in found}
    assert set(Steps.rows) < {1, 2, 3, 4, 5} and 4 not in Steps.rows  # a row in five that ended is not taken out


def test_graphs_need_a_gpu():
    given, sampling = prompts(9), Sampling(max_new_tokens=3)
    want = [x.ids for x in generate(tiny(), SMALL, given, frozenset(), sampling)]
    with pytest.warns(UserWarning, match="no CUDA graphs: layer 0 lies in host memory"):
        found = [x.ids for x in generate(tiny(), SMALL, given, frozenset(), sampling, graphs=True)]
    assert found == want
    cache = DynamicCache(config=tiny().config)
    with pytest.warns(UserWarning, match="no CUDA graphs: they are of a ReasonAllocCache, not of DynamicCache"):
        found = [x.ids for x in chains_of(tiny(), cache, given, frozenset(), sampling, graphs=True)]
    assert found == want


@pytest.mark.parametrize("config", [FULL, SMALL])
def test_rows_leave_models_with_states(config):
    """Also with transformers' own cache."""
    if "bamba" not in kinds() or not hasattr(cache_utils, "LinearAttentionLayer"):
        pytest.skip("states had caches of their own in this transformers")
    model, sampling = build("bamba"), Sampling(max_new_tokens=20)
    given = [(str(i), prompt(20, seed=i)[0].tolist()) for i in range(3)]
    free = {x.key: x.ids for x in generate(model, config, given, frozenset(), sampling)}
    stop = frozenset({free["1"][4]})
    made = {x.key: x.ids for x in generate(model, config, given, stop, sampling)}
    assert len(made["1"]) <= 5 and len({len(x) for x in made.values()}) > 1
    for key, ids in free.items():
        assert made[key] == ids[: len(made[key])]
    if config is FULL:
        stock = chains_of(model, DynamicCache(config=model.config), given, stop, sampling)
        assert {x.key: x.ids for x in stock} == made


def test_samples_depend_on_seed_and_key_alone():
    given = prompts(9, 14)
    one = chains(SMALL, given, temperature=1.0, top_p=0.9, seed=1)
    assert chains(SMALL, given[1:], temperature=1.0, top_p=0.9, seed=1)["1"].ids == one["1"].ids
    assert chains(SMALL, given, temperature=1.0, top_p=0.9, seed=2)["1"].ids != one["1"].ids


def test_top_p_leaves_unlikely_tokens_out():
    given = prompts(9)
    assert chains(FULL, given, temperature=1.0, top_p=1e-6)["0"].ids == chains(FULL, given)["0"].ids


def test_figures_of_a_row():
    made = chains(SMALL, prompts(30, 5))
    page = 16 * 2 * 8 * 4
    assert made["0"].peak_bytes <= 3 * 2 * 3 * page and made["0"].peak_bytes % page == 0
    assert 0 < made["1"].mean_bytes <= made["1"].peak_bytes
    assert made["0"].slots < 33 and made["0"].seconds > 0 and made["0"].steps == 40
    full = chains(FULL, prompts(30))["0"]
    assert full.slots == 69  # the last token is not fed
    held = [6 * page * -(-(30 + i) // 16) for i in range(40)]
    assert full.peak_bytes == max(held) and full.mean_bytes == pytest.approx(sum(held) / 40)


def test_bad_input():
    with pytest.raises(ValueError, match="no token"):
        list(generate(tiny(), FULL, [("a", [])], frozenset(), Sampling()))
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**wrong)
    assert list(generate(tiny(), FULL, [], frozenset(), Sampling())) == []


def test_half_a_character_is_no_prompt():
    with pytest.raises(ValueError, match=r"the prompt: character 1 is U\+D83D, half of a surrogate pair"):
        encode_prompt(None, "x\ud83d", "cpu")


def test_end_tokens():
    model = tiny()

    class Tokenizer:
        eos_token_id = 5

    assert ends(model, Tokenizer) == {5}
    model.generation_config.eos_token_id = [1, 2]
    assert ends(model, Tokenizer) == {1, 2}
    model.generation_config.eos_token_id = None


def test_what_the_generation_config_asks_beyond_is_named():
    model, greedy, drawn = tiny(), Sampling(), Sampling(temperature=0.6)
    plain = model.generation_config
    assert not_applied(model, greedy) == not_applied(model, drawn) == {}
    try:
        model.generation_config = GenerationConfig(top_k=20, repetition_penalty=1.05, temperature=0.6, top_p=0.95)
        assert not_applied(model, drawn) == {"top_k": 20, "repetition_penalty": 1.05}
        assert not_applied(model, greedy) == {"repetition_penalty": 1.05}
        model.generation_config = GenerationConfig(top_k=0, repetition_penalty=1.0, no_repeat_ngram_size=0)
        assert not_applied(model, drawn) == {}
    finally:
        model.generation_config = plain


# ---- records -------------------------------------------------------------------------------------------------------


def record(item="a", sample=0, cell="rkv 24", **changes):
    said = ("length", "text ☺\n", ["1"], [True])
    base = Record(cell, "hash", "asked", item, "", sample, 0, 9, 40, *said, 24, None, 1.0, 2.0, 3, 0.5)
    return replace(base, **changes)


def test_records_come_back(tmp_path):
    records = Records(tmp_path)
    records.open({"model": "m"})
    for x in (record("a"), record("b"), record("a")):
        records.add(x)
    records.close()
    again = Records(tmp_path)
    again.open({"model": "m"})
    assert list(again.by_key.values()) == [record("a"), record("b")]


def test_a_torn_line_is_forgotten(tmp_path):
    records = Records(tmp_path)
    records.open({})
    records.add(record("a"))
    records.close()
    whole = records.path.read_bytes()
    for cut in range(1, len(whole)):
        records.path.write_bytes(whole + whole[:cut])
        again = Records(tmp_path)
        again.open({})
        assert records.path.read_bytes() == whole and list(again.by_key) == [record("a").key]
        again.close()


def test_one_writer_at_a_time(tmp_path):
    first = Records(tmp_path)
    first.open({})
    with pytest.raises(ValueError, match="another run"):
        Records(tmp_path).open({})
    first.close()
    Records(tmp_path).open({})


def test_other_settings_need_another_folder(tmp_path):
    records = Records(tmp_path)
    records.open({"model": "m", "seed": 1})
    records.add(record())
    records.close()
    with pytest.raises(ValueError, match=r"seed 1, now 2"):
        Records(tmp_path).open({"model": "m", "seed": 2})


def test_other_cache_settings_need_another_folder(tmp_path):
    records = Records(tmp_path)
    records.open({})
    records.add(record())
    records.check({"rkv 24": "hash", "rkv 48": "x"}, {"a": "asked", "b": "x"})
    with pytest.raises(ValueError, match="rkv 24"):
        records.check({"rkv 24": "other"}, {})
    with pytest.raises(ValueError, match="a was another problem"):
        records.check({}, {"a": "other"})


def test_packed_records(tmp_path):
    pack([record("a"), record("b")], tmp_path / "x.jsonl.gz")
    assert list(read(tmp_path / "x.jsonl.gz")) == [record("a"), record("b")]
    first = (tmp_path / "x.jsonl.gz").read_bytes()
    pack([record("a"), record("b")], tmp_path / "y.jsonl.gz")
    assert (tmp_path / "y.jsonl.gz").read_bytes() == first


def test_what_is_no_record(tmp_path):
    path = tmp_path / "x.jsonl"
    for wrong in ("{", "[]", json.dumps({"cell": "x"})):
        path.write_text(wrong + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"x\.jsonl:1"):
            list(read(path))
