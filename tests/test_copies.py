"""Copies of a cache, and caches that were written to a file: each goes on as the cache itself would."""

import copy
import gc
import pickle
import threading
from contextlib import nullcontext
from dataclasses import replace

import models
import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache, cache_utils

import reasonalloc as ra
from reasonalloc.hf.compat import cache_argument

SMALL = {"budget": 24, "interval": 8, "window": 4}


def small(model, method="reasonalloc", rows=2, read=True, record=False, **changes):
    """A cache that has read a left-padded batch and a short chain."""
    options = {**SMALL, **changes}
    config = ra.Config(method=method, **({} if method == "full" else options))
    cache = ra.ReasonAllocCache(model, config, record=record)
    if read:
        ids, mask = models.left_padded([models.prompt(60, seed=i)[0, i * 9 :] for i in range(rows)])
        models.step(model, cache, ids, mask)
        chain(model, cache, 13, rows)
    return cache


def chain(model, cache, tokens, rows=2):
    """[rows, tokens, V] logits of a greedy chain."""
    ids, found = models.prompt(1, rows, seed=3), []
    for _ in range(tokens):
        found.append(models.step(model, cache, ids)[:, -1])
        ids = found[-1].argmax(-1, keepdim=True)
    return torch.stack(found, 1)


def kept(cache):
    rows = len(cache.stats()["slots"])
    return [p.tolist() for i in cache.stats()["layers"] for row in range(rows) for p in cache.positions(i, row)]


def assert_alike(model, one, two, tokens=60, rows=2):
    """Both go on alike, through several cuts, to the bit."""
    before = one.stats()["routings"]
    assert torch.equal(chain(model, one, tokens, rows), chain(model, two, tokens, rows))
    assert kept(one) == kept(two)
    a, b = one.stats(), two.stats()
    for name in ("budgets", "evicted", "routings", "steps", "slots", "ratio", "lost_mass"):
        assert a[name] == b[name], name
    assert one.policy.unlimited or a["routings"] > before


# ---- copies ----


@pytest.mark.parametrize("method", ["reasonalloc", "streaming", "full", "adakv"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_copy_goes_on_as_the_cache_would(name, method):
    model = models.tiny(name)
    cache, uncopied = small(model, method), small(model, method)
    twin = copy.deepcopy(cache)
    assert twin.model is model
    assert twin.config is cache.config
    other = models.step(model, twin, models.prompt(3, 2, seed=8))  # another text in one of them does not show
    assert other.isfinite().all()
    third = copy.deepcopy(cache)
    assert_alike(model, cache, uncopied)
    assert_alike(model, third, small(model, method))


def test_copy_with_smoothing_and_record():
    model = models.tiny()
    options = {"method": "rkv", "smoothing": 0.5, "record": True}
    cache, uncopied = small(model, **options), small(model, **options)
    twin = copy.deepcopy(cache)
    assert_alike(model, cache, uncopied)
    assert_alike(model, twin, small(model, **options))
    ids = np.ones(cache.ragged[0].core.tokens(1), np.int64)
    one, two = cache.trace(ids, row=1), twin.trace(ids, row=1)
    assert np.array_equal(one.gone, two.gone)
    assert len(one.cuts) == len(two.cuts) > 3


def test_pages_are_shared():
    model = models.tiny()
    cache = small(model)
    used, reserved = cache.stats()["bytes"], cache.stats()["reserved_bytes"]
    twins = [copy.deepcopy(cache) for _ in range(8)]
    assert (cache.stats()["bytes"], cache.stats()["reserved_bytes"]) == (used, reserved)
    chain(model, twins[0], 1)  # a head's last page is copied once it is written to
    assert used < cache.stats()["bytes"] < 2 * used + 1
    del twins
    gc.collect()
    assert cache.stats()["bytes"] == used


@pytest.mark.parametrize("method", ["full", "rkv"])
def test_prefix_is_read_once(method):
    """transformers' recipe: a prompt's cache is copied for each continuation."""
    model = models.tiny()
    prefix, questions = models.prompt(40), [models.prompt(n, seed=n) for n in (1, 7, 12)]

    def make():
        if method == "stock":
            return DynamicCache(config=model.config)
        return ra.ReasonAllocCache(model, ra.Config(method=method, **({} if method == "full" else SMALL)))

    def answer(cache, ids):
        return model.generate(ids, max_new_tokens=40, do_sample=False, **cache_argument(cache))

    shared = make()
    models.step(model, shared, prefix)
    for question in questions:
        ids = torch.cat([prefix, question], 1)
        given = answer(copy.deepcopy(shared), ids)
        if method == "full":
            assert torch.equal(given, answer(DynamicCache(config=model.config), ids))
        alone = make()
        models.step(model, alone, prefix)
        assert torch.equal(given, answer(alone, ids))
    assert shared.get_seq_length() == 40


def test_rows_and_crops_of_a_copy():
    model = models.tiny()
    cache, plain = small(model), small(model)
    twin = copy.deepcopy(cache)
    twin.reorder_cache(torch.tensor([1, 0]))
    plain.reorder_cache(torch.tensor([1, 0]))
    assert_alike(model, twin, plain, 20)
    again, plain = copy.deepcopy(cache), small(model)
    for each in (again, plain):
        each.batch_repeat_interleave(2)
    assert_alike(model, again, plain, 20, rows=4)
    cropped, plain = copy.deepcopy(cache), small(model)
    uncut = cache.step.uncut
    for each in (cropped, plain):
        each.crop(-uncut)
    assert_alike(model, cropped, plain, 20)
    assert_alike(model, cache, small(model))


def test_copies_of_empty_and_closed_caches():
    model = models.tiny()
    empty = copy.deepcopy(small(model, read=False))
    models.step(model, empty, models.prompt(30))
    assert empty.get_seq_length() == 30
    cache = small(model)
    cache.step.close(ValueError("broken"))
    twin = copy.deepcopy(cache)
    with pytest.raises(RuntimeError, match=r"closed after an error \(ValueError: broken\)"):
        chain(model, twin, 1)
    twin.reset()
    models.step(model, twin, models.prompt(12))
    assert cache.stats()["closed"] == "ValueError: broken"
    assert len(copy.copy(cache).ragged) == 3


@pytest.mark.parametrize("act", [copy.deepcopy, lambda cache: cache.save("/nonexistent/x")], ids=["copy", "save"])
def test_amid_a_pass(act):
    """In an observer, and between layers; the cache goes on where the caller takes the error."""
    model = models.tiny()
    found = []

    def observer(cut):
        with pytest.raises(RuntimeError, match="in the middle of a forward pass"):
            act(cache)
        found.append(cut.order)

    cache = ra.ReasonAllocCache(model, ra.Config(method="rkv", **SMALL), observers=[observer])
    models.step(model, cache, models.prompt(60))
    chain(model, cache, 20, 1)
    assert {0, 1, 2} <= set(found)
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: observer(type("Cut", (), {"order": -1})))
    plain = ra.ReasonAllocCache(model, ra.Config(method="rkv", **SMALL))
    try:
        chain(model, cache, 1, 1)
    finally:
        hook.remove()
    assert -1 in found
    models.step(model, plain, models.prompt(60))
    chain(model, plain, 20, 1)
    chain(model, plain, 1, 1)
    assert kept(plain) == kept(cache)


def test_one_of_two_goes_in_any_order():
    model = models.tiny()
    gc.disable()
    try:
        for first in (0, 1):
            pair = [small(model)]
            pair.append(copy.deepcopy(pair[0]))
            del pair[first]
            pair[0]._trim()
            assert_alike(model, pair[0], small(model))
    finally:
        gc.enable()


def test_threads(tmp_path):
    """Copies share a pool, which serves one thread at a time; loaded caches share nothing."""
    model = models.tiny()
    cache = small(model)
    cache.save(tmp_path / "cache")
    right = chain(model, small(model), 20)
    twins = [copy.deepcopy(cache) for _ in range(3)]
    loaded = [ra.ReasonAllocCache.load(tmp_path / "cache", model) for _ in range(3)]
    found, lock = {}, threading.Lock()

    def run(name, each, guard):
        ids, logits = models.prompt(1, 2, seed=3), []
        for _ in range(20):
            with guard:
                logits.append(models.step(model, each, ids)[:, -1])
            ids = logits[-1].argmax(-1, keepdim=True)
        found[name] = torch.stack(logits, 1)

    threads = [threading.Thread(target=run, args=(("copy", i), x, lock)) for i, x in enumerate(twins)]
    threads += [threading.Thread(target=run, args=(("file", i), x, nullcontext())) for i, x in enumerate(loaded)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(torch.equal(x, right) for x in found.values())
    assert_alike(model, cache, small(model))


def test_pickle_names_save():
    with pytest.raises(TypeError, match=r"cannot be pickled: cache\.save\(path\)"):
        pickle.dumps(small(models.tiny(), read=False))


# ---- files ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_loaded_cache_goes_on(name, dtype, tmp_path):
    model = models.tiny(name, dtype)
    cache = small(model)
    cache.save(tmp_path / "cache")
    loaded = ra.ReasonAllocCache.load(tmp_path / "cache", model)
    assert kept(loaded) == kept(cache)
    for layer, other in zip(cache.ragged, loaded.ragged, strict=True):
        slots = len(cache.positions(layer.index)[0])
        one, two = np.empty((2, slots, layer.head_dim), np.float32)
        for values in (False, True):
            layer.core.read(0, 0, values, one)
            other.core.read(0, 0, values, two)
            assert np.array_equal(one, two)
            assert np.abs(one).max() > 0
    twin = copy.deepcopy(loaded)  # read and compressed once, for many
    if dtype == torch.float32:
        assert_alike(model, cache, loaded, 220)
        assert_alike(model, twin, small(model), 20)
    else:
        tokens = chain(model, cache, 100).argmax(-1)
        assert torch.equal(tokens, chain(model, loaded, 100).argmax(-1))
        assert kept(cache) == kept(loaded)


@pytest.mark.parametrize("kind", ["qwen3_next", "lfm2", "gpt_oss", "gemma2"])
def test_other_layers_and_logits(kind, tmp_path):
    """Recurrent states, convolutions, sinks and soft-capping."""
    if kind in ("qwen3_next", "lfm2") and not hasattr(cache_utils, "LinearAttentionLayer"):
        pytest.skip("states had caches of their own in this transformers")
    model = tiny.build(kind)
    cache = ra.ReasonAllocCache(model, ra.Config(method="rkv", max_bytes="200KiB", interval=8, window=4))
    models.step(model, cache, models.prompt(60, 2))
    chain(model, cache, 13)
    cache.save(tmp_path / "cache")
    loaded = ra.ReasonAllocCache.load(tmp_path / "cache", model)
    if kind in ("gpt_oss", "gemma2"):  # rows that multiply are cut before the next step
        before = cache.stats()["evicted"]
        for each in (cache, loaded):
            each.batch_repeat_interleave(4)
            each.batch_select_indices(torch.tensor([0, 4]))
        assert cache.stats()["evicted"] > before
        assert cache.stats()["lost_mass"] == pytest.approx(loaded.stats()["lost_mass"], rel=1e-6)
    assert torch.equal(chain(model, cache, 30), chain(model, loaded, 30))
    assert kept(cache) == kept(loaded)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full"},
        {"method": "rkv", "smoothing": 0.5, "record": True},
        {"budget": None, "max_bytes": "150KiB"},
        {"budget": None, "ratio": 0.3, "keep_prompt": True},
    ],
    ids=lambda x: "-".join(x),
)
def test_settings_and_records_come_back(options, tmp_path):
    model = models.tiny()
    cache = small(model, **options)
    cache.save(tmp_path / "cache")
    loaded = ra.ReasonAllocCache.load(tmp_path / "cache", model)
    assert loaded.config == cache.config
    before, after = cache.stats(), loaded.stats()
    for name in set(before) - {"seconds", "peak_bytes", "reserved_bytes"}:
        assert before[name] == after[name], name
    for each in (cache, loaded):
        each.batch_repeat_interleave(2)
    assert_alike(model, cache, loaded, 30, rows=4)
    if "record" in options:
        ids = np.ones(cache.ragged[0].core.tokens(1), np.int64)
        one, two = cache.trace(ids, row=1), loaded.trace(ids, row=1)
        for name in ("gone", "budgets", "cuts"):
            assert np.array_equal(getattr(one, name), getattr(two, name)), name
        for name in ("lost", "quantiles"):  # of scores that were computed anew
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_loaded_cache_is_cropped_as_the_cache_is(tmp_path):
    model = models.tiny()
    cache = small(model)
    cache.save(tmp_path / "cache")
    loaded, uncut = ra.ReasonAllocCache.load(tmp_path / "cache", model), cache.step.uncut
    for each in (cache, loaded):
        with pytest.raises(ValueError, match=f"only the newest {uncut} came after the last eviction"):
            each.crop(-uncut - 1)
        each.crop(-uncut)
    assert uncut > 1
    assert_alike(model, cache, loaded, 20)


@pytest.mark.parametrize(
    ("options", "prompt", "share"), [({"budget": None, "ratio": 1.0}, 30, 30), ({"budget": 400}, 1, 400)], ids=str
)
def test_figures_of_rows_that_were_never_cut_come_back(options, prompt, share, tmp_path):
    """Their even shares, and that a prompt was too short for a wave."""
    model = models.tiny()
    cache = small(model, read=False, **options)
    models.step(model, cache, models.prompt(prompt))
    models.step(model, cache, models.prompt(1))
    before = cache.stats()
    cache.save(tmp_path / "cache")
    after = ra.ReasonAllocCache.load(tmp_path / "cache", model).stats()
    assert after["budgets"] == before["budgets"] and sum(map(sum, before["budgets"][0])) == 6 * share
    assert after["wave"] == before["wave"] and ("too short" in after["wave"]) == (prompt == 1)


def test_empty_cache_and_profile(tmp_path):
    model = models.tiny()
    profile = ra.profile(model, models.Words(), ["abcdefgh" * 4])
    cache = small(model, read=False, profile=profile)
    cache.save(tmp_path / "cache")
    loaded = ra.ReasonAllocCache.load(tmp_path / "cache", model)
    assert loaded.config.profile == profile
    for each in (cache, loaded):
        models.step(model, each, models.prompt(60, 2))
    assert_alike(model, cache, loaded)


def test_padding_is_remembered(tmp_path):
    """A mask over all columns fits after loading as before."""
    model = models.tiny()
    cache = small(model)
    cache.save(tmp_path / "cache")
    loaded = ra.ReasonAllocCache.load(tmp_path / "cache", model)
    length = cache.get_seq_length()
    mask = torch.ones(2, length + 1, dtype=torch.long)
    with pytest.raises(ValueError, match="which was padding when it was given"):
        models.step(model, loaded, models.prompt(1, 2), mask)
    mask[1, :9] = 0
    assert torch.equal(*(models.step(model, each, models.prompt(1, 2), mask) for each in (cache, loaded)))


def test_what_is_not_saved(tmp_path):
    model = models.tiny()
    config = ra.Config(method="rkv", **SMALL)
    by_hand = ra.ReasonAllocCache(model, config, policy=config.policy())
    with pytest.raises(ValueError, match="a policy put together by hand"):
        by_hand.save(tmp_path / "cache")
    cache = small(model)
    cache.step.close(ValueError("broken"))
    with pytest.raises(RuntimeError, match="closed after an error"):
        cache.save(tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_another_model(tmp_path):
    model = models.tiny()
    small(model).save(tmp_path / "cache")
    same = models.build("llama")
    ra.ReasonAllocCache.load(tmp_path / "cache", same)
    for other, reason in (
        (models.tiny("llama", seed=1), "other weights of the same shape"),
        (models.tiny("llama", torch.bfloat16), r"dtype float32 \(here bfloat16\)"),
        (models.tiny("llama-mqa"), r"kv_heads 2 \(here 1\)"),
        (models.tiny("qwen3"), r"model_type 'llama' \(here 'qwen3'\)"),
    ):
        with pytest.raises(ValueError, match=rf"saved with another model, .*{reason}"):
            ra.ReasonAllocCache.load(tmp_path / "cache", other)


def _parts(path):
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_damaged_files(tmp_path):
    model, path, bad = models.tiny(), tmp_path / "cache", tmp_path / "bad"
    small(model).save(path)
    data = path.read_bytes()
    arrays, metadata = _parts(path)

    def refused(match):
        with pytest.raises(ValueError, match=match):
            ra.ReasonAllocCache.load(bad, model)

    with pytest.raises(FileNotFoundError):
        ra.ReasonAllocCache.load(tmp_path / "none", model)
    for cut in (0, 7, 100, len(data) // 2, len(data) - 1):
        bad.write_bytes(data[:cut])
        refused("is not a saved cache: no safetensors file")
    flipped = bytearray(data)
    flipped[-5] ^= 1
    bad.write_bytes(flipped)
    refused("is damaged")
    save_file(arrays, bad, {**metadata, "schema": "7"})
    refused("of schema '7', this version reads schema 1")
    save_file(arrays, bad, {**metadata, "format": "x"})
    refused("its format is 'x'")
    save_file(arrays, bad, {**metadata, "header": "{"})
    refused("its header: not JSON")
    save_file({**arrays, "tokens": arrays["tokens"][:1].clone()}, bad, metadata)
    refused("array tokens is damaged")
    for name in arrays:
        save_file({k: v for k, v in arrays.items() if k != name}, bad, metadata)
        refused("its arrays are")


def test_wrong_arrays(tmp_path):
    """Files that are whole, with checksums that fit, but whose parts do not."""
    model, path, bad = models.tiny(), tmp_path / "cache", tmp_path / "bad"
    from reasonalloc.hf import saved_file

    small(model).save(path)
    header, arrays = saved_file.read(path)
    for name, change in (
        ("layer.0.keys", lambda x: x[:-1]),
        ("layer.0.values", lambda x: x.half()),
        ("layer.1.positions", lambda x: x.flip(0)),
        ("layer.1.positions", lambda x: x - 100),
        ("layer.1.slots", lambda x: x + 1),
        ("layer.1.slots", lambda x: -x),
        ("layer.2.counts", lambda x: x + 9),
        ("layer.2.queries", lambda x: x * float("nan")),
        ("layer.2.keys", lambda x: x * float("inf")),
        ("tokens", lambda x: x * 1000),
        ("tokens", lambda x: x - 60),
        ("prompt", lambda x: x + 1000),
        ("demand", lambda x: -x),
        ("columns", lambda x: x[:, 1:]),
        ("budgets", lambda x: x[..., :1]),
    ):
        saved_file.write(bad, header, {**arrays, name: change(arrays[name]).contiguous()})
        with pytest.raises(ValueError, match="is not a saved cache of this model"):
            ra.ReasonAllocCache.load(bad, model)


@pytest.mark.parametrize("keys", [3, "keys", None])
def test_keys_of_other_layers_that_are_no_tensor(keys, tmp_path):
    """What is wrong is a ValueError, whatever stands in the file."""
    from reasonalloc.hf import saved_file

    model = tiny.build("gemma2")
    cache = ra.ReasonAllocCache(model, ra.Config(method="rkv", budget=24, interval=8, window=4))
    models.step(model, cache, models.prompt(40))
    cache.save(tmp_path / "cache")
    header, arrays = saved_file.read(tmp_path / "cache")
    first, *others = header.stock
    changed = replace(first, state={**first.state, "keys": keys})
    saved_file.write(tmp_path / "bad", replace(header, stock=(changed, *others)), arrays)
    with pytest.raises(ValueError, match="keys and values do not belong together"):
        ra.ReasonAllocCache.load(tmp_path / "bad", model)
