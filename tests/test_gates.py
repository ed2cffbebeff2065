"""Full heads beside local heads: methods rlkv and duo."""

from __future__ import annotations

import caches
import models
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_padding import assert_rows_are_alone
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.hf.compat import cache_argument
from reasonalloc.policy.gates import local_heads, read_gates, write_gates
from reasonalloc.store import backends
from reasonalloc.store.pages import PAGE_TOKENS

GATES = [[0.1, 0.9], [0.5, 0.5], [1.2, -0.3]]
SHORT = {"sinks": 3, "window": 4}


@pytest.fixture
def gates(tmp_path):
    path = tmp_path / "adapter_weights.tsv"
    write_gates(path, GATES)
    return str(path)


def config_of(gates, sparsity=0.5, method="rlkv", recent=9, options=None, **changes):
    given = {"gates": gates, "sparsity": sparsity, "recent": recent, **(options or {})}
    return ra.Config(method=method, options=given, **{**SHORT, **changes})


# ---- The file and the choice of heads --------------------------------------------------------------------------------


def test_the_published_form(tmp_path):
    """Numbers of the published gates of DeepSeek-R1-Distill-Llama-8B (Kurt232/RLKV), which leave [0, 1]."""
    text = (
        "2.773437500000000000e-01\t9.765625000000000000e-02\t6.093750000000000000e-01\n"
        "6.718750000000000000e-01\t-4.394531250000000000e-03\t8.867187500000000000e-01\n"
    )
    path = tmp_path / "adapter_weights.tsv"
    path.write_text(text)
    assert read_gates(path).tolist() == [[0.27734375, 0.09765625, 0.609375], [0.671875, -0.00439453125, 0.88671875]]
    assert write_gates(tmp_path / "again.tsv", read_gates(path)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.1 0.2\n0.3\n", ":2: has 1 gates, the lines before have 2"),
        ("0.1\tone\n", ":1: gates are numbers"),
        ("0.1 nan\n", ":1: gates must be finite"),
        ("\n", "holds no gates"),
    ],
)
def test_a_file_that_is_none(tmp_path, text, reason):
    path = tmp_path / "gates.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        ra.ReasonAllocCache(models.tiny(), config_of(str(path)))


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5]), min_size=3, max_size=3), min_size=1),
    st.floats(-0.5, 1.5),
)
def test_as_many_heads_as_asked_for(gates, sparsity):
    local = local_heads(gates, sparsity)
    clipped = [(min(max(x, 0.0), 1.0), -3 * i - h) for i, row in enumerate(gates) for h, x in enumerate(row)]
    count = round(min(max(sparsity, 0), 1) * len(clipped))
    expected = sorted(range(len(clipped)), key=lambda i: clipped[i])[:count]
    assert np.flatnonzero(local.ravel()).tolist() == sorted(expected)


# ---- What is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 5])
@pytest.mark.parametrize("sparsity", [0, 0.5, 1])
def test_local_heads_are_bounded_and_full_ones_whole(gates, sparsity, interval):
    model, local = models.tiny(), local_heads(GATES, sparsity)
    cache = ra.ReasonAllocCache(model, config_of(gates, sparsity, interval=interval))
    cache.prompt_columns = 0
    for i in range(60):
        models.step(model, cache, models.prompt(40 if i == 0 else 1, rows=2, seed=i))
        figures, tokens = cache.stats(), 40 + i
        for layer, row, head in np.ndindex(3, 2, 2):
            held = cache.positions(layer, row)[head].tolist()
            ahead = i % interval
            kept = [*range(3), *range(tokens - 9 - ahead, tokens)] if local[layer, head] else list(range(tokens))
            assert held == kept, (i, layer, row, head)
        slots = np.array(figures["slots"])
        assert figures["bytes"] == int((-(-slots // PAGE_TOKENS)).sum()) * cache.pool.core.page_bytes
        assert figures["budgets"] == [np.where(local, 12, -1).tolist()] * 2
    assert figures["evicted"] == 2 * local.sum() * (99 - 12 - (59 % interval))


def test_defaults_are_the_papers(gates):
    for method, sinks, recent in (("rlkv", 16, 64), ("duo", 64, 256)):
        policy = ra.Config(method=method, options={"gates": gates}).policy()
        assert (policy.schedule.sinks, policy.heads.sinks, policy.heads.recent) == (sinks, sinks, recent)
        assert (policy.schedule.interval, policy.heads.sparsity, policy.schedule.whole_prompts) == (1, 0.4, True)


@pytest.mark.parametrize("name", models.PLAIN[:6])
def test_no_local_head_gives_the_stock_tokens(tmp_path, name):
    model, ids = models.tiny(name), models.prompt(30)
    heads = model.config.num_key_value_heads
    write_gates(tmp_path / "g.tsv", np.ones((3, heads)))
    how = {"max_new_tokens": 40, "do_sample": False}
    expected = model.generate(ids, **cache_argument(DynamicCache(config=model.config)), **how)
    cache = ra.ReasonAllocCache(model, config_of(str(tmp_path / "g.tsv"), sparsity=0))
    assert torch.equal(expected, model.generate(ids, **cache_argument(cache), **how))


@pytest.mark.parametrize("sparsity", [0.5, 1])
def test_logits_are_those_of_masked_attention(gates, sparsity):
    """Against one pass of plain attention whose local heads are masked: after the prompt a token sees the sinks, the
    newest tokens that the cut before it left, and itself."""
    prompt, tokens, local = 30, 60, torch.from_numpy(local_heads(GATES, sparsity))
    model, ids = models.build("llama"), models.prompt(60)

    def attention(module, query, key, value, mask, scaling=None, **options):
        group, n = query.shape[1] // key.shape[1], key.shape[2]
        i, j = torch.arange(n)[:, None], torch.arange(n)[None]
        seen = (j <= i) & ((i < prompt) | (j < 3) | (i - j <= 9))
        masks = torch.stack([seen if x else j <= i for x in local[module.layer_idx]]).repeat_interleave(group, 0)
        logits = (query @ key.repeat_interleave(group, 1).mT) * scaling
        weights = logits.masked_fill(~masks, -torch.inf).softmax(-1)
        return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2), None

    cache = ra.ReasonAllocCache(model, config_of(gates, sparsity))
    got = [models.step(model, cache, ids[:, :prompt])]
    got += [models.step(model, cache, ids[:, i : i + 1]) for i in range(prompt, tokens)]
    ra.uninstall(model)
    AttentionInterface.register("test-gates", attention)
    AttentionMaskInterface.register("test-gates", sdpa_mask)
    model.set_attn_implementation("test-gates")
    with torch.no_grad():
        expected = model(ids).logits
    torch.testing.assert_close(torch.cat(got, 1), expected, rtol=2e-4, atol=2e-4)


def test_a_prompt_in_chunks_is_cut_at_its_end(gates):
    model, ids = models.tiny(), models.prompt(50)
    whole, chunks = (ra.ReasonAllocCache(model, config_of(gates)) for _ in range(2))
    expected = [models.step(model, whole, ids)[:, -1]]
    got = [models.step(model, chunks, ids[:, i : i + 10])[:, -1] for i in range(0, 50, 10)][-1:]
    for i in range(20):
        expected.append(models.step(model, whole, models.prompt(1, seed=i))[:, -1])
        got.append(models.step(model, chunks, models.prompt(1, seed=i))[:, -1])
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert caches.contents(chunks) == caches.contents(whole)


def test_heads_are_those_of_the_cache(tmp_path):
    """JetMoe's config counts the keys that are shared by a token's experts; they are stored for each of these."""
    model = tiny.build("jetmoe")
    write_gates(tmp_path / "two.tsv", np.ones((3, 2)))
    write_gates(tmp_path / "four.tsv", [[0.9, 0.8, 0.2, 0.1]] * 3)
    with pytest.raises(ValueError, match="gates of 3 layers x 2 KV heads, the model has 3 layers x 4 KV heads"):
        ra.ReasonAllocCache(model, config_of(str(tmp_path / "two.tsv")))
    shares = {"method": "rkv", "heads": "profile", "budget": 24, "interval": 8, "window": 4}
    for config in (
        config_of(str(tmp_path / "four.tsv")),
        ra.Config(**shares, options={"head_profile": str(tmp_path / "four.tsv")}),
    ):
        cache = ra.ReasonAllocCache(model, config)
        models.step(model, cache, models.prompt(40))
        first, *_, last = cache.stats()["slots"][0][0]
        assert first > last


def test_layers_without_a_budget_are_told_apart(tmp_path):
    """A line for each layer of the model or for those with a budget; the sparsity is of the latter."""
    model = models.build("gemma3")  # full attention in layers 2 and 5
    every = np.linspace(0, 1, 12).reshape(6, 2)
    every[2], every[5] = (0.9, 0.1), (0.2, 0.8)
    write_gates(tmp_path / "six.tsv", every)
    write_gates(tmp_path / "two.tsv", every[[2, 5]])
    write_gates(tmp_path / "three.tsv", every[:3])
    for name in ("six.tsv", "two.tsv"):
        cache = ra.ReasonAllocCache(model, config_of(str(tmp_path / name)))
        assert cache.policy.heads.limits.tolist() == [[-1, 12], [12, -1]]
        models.step(model, cache, models.prompt(40))
        models.step(model, cache, models.prompt(1))
        assert cache.stats()["slots"] == [[[41, 12], [12, 41]]]
    with pytest.raises(
        ValueError, match=r"gates of 3 layers x 2 KV heads, the model has 6 layers, of which 2 have a budget .* x 2"
    ):
        ra.ReasonAllocCache(model, config_of(str(tmp_path / "three.tsv")))
    with pytest.raises(ValueError, match=r"gates of 6 layers x 2 KV heads, the model has 3 layers x 2 KV heads"):
        ra.ReasonAllocCache(models.tiny(), config_of(str(tmp_path / "six.tsv")))


def test_nothing_is_allocated_in_a_step(gates):
    """Once lists have grown: cuts find their room made."""
    model = models.tiny()
    cache = ra.ReasonAllocCache(model, config_of(gates))
    models.step(model, cache, models.prompt(36))
    counts = []
    for i in range(60):
        before = _core.allocations()
        models.step(model, cache, models.prompt(1, seed=i))
        counts.append(_core.allocations() - before)
    assert np.median(counts) == 0


def given(total, limits, window=2, heads=4):
    out, bytes_ = np.zeros(heads, np.int64), np.array(limits, np.int64).tobytes()
    route = (3, 1.0, 0.0, 1.0, 0.0, 0.0, bytes_)
    _core.route(np.zeros(heads, np.float32), np.ones(heads, np.int64), window, total, route, out)
    return out.tolist()


def test_head_budgets_that_are_given():
    assert given(31, [5, -1, 7, -1]) == [5, 10, 7, 9]  # the odd slot to the lower index
    assert given(40, [5, 6, 7, 8]) == [5, 6, 7, 8]
    assert given(16, [5, -1, 7, -1]) == [5, 2, 7, 2]
    with pytest.raises(ValueError, match="below the window"):
        given(15, [5, -1, 7, -1])  # nothing is left for two windows
    with pytest.raises(ValueError, match="below the window"):
        given(40, [1, -1, 7, -1])
    with pytest.raises(ValueError, match="budgets"):
        given(40, [2**60, -1, 7, -1])
    with pytest.raises(ValueError, match=r"limits are int64, one for each of 4 heads, got 24 bytes"):
        given(40, [5, 6, 7])
    with pytest.raises(ValueError, match="budgets"):  # without limits
        _core.route(
            np.zeros(2, np.float32), np.ones(2, np.int64), 1, 8, (3, 1.0, 0.0, 1.0, 0.0, 0.0), np.zeros(2, np.int64)
        )


# ---- What holds of every method --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", caches.GATED)
def test_a_row_alone_is_the_row_in_a_batch(gates, method):
    assert assert_rows_are_alone(models.tiny(), config_of(gates, method=method), new=40)


@pytest.mark.parametrize("method", caches.GATED)
@pytest.mark.parametrize(("sparsity", "interval"), [(0.5, 1), (0.5, 5), (1.0, 1)])
def test_on_a_device(gates, method, sparsity, interval, monkeypatch):
    pytest.importorskip("reasonalloc._cuda_emulated")
    model, found = models.tiny(), []
    for backend in ("cpu", "cuda-emulated"):
        monkeypatch.setenv(backends.VARIABLE, backend)
        cache = ra.ReasonAllocCache(model, config_of(gates, sparsity, method, interval=interval))
        ids = models.prompt(40, rows=2)
        model.generate(ids, **cache_argument(cache), max_new_tokens=30, do_sample=False, pad_token_id=0)
        found.append((caches.contents(cache), cache.stats()["budgets"], cache.stats()["evicted"]))
    assert found[0] == found[1]
    assert found[0][2] > 0


def test_decoding_on_a_device_waits_only_where_full_heads_grow(gates, monkeypatch):
    emulated = pytest.importorskip("reasonalloc._cuda_emulated")
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    model = models.tiny()
    cache = ra.ReasonAllocCache(model, config_of(gates))
    models.step(model, cache, models.prompt(40))
    waiting = 0
    for turn in range(48):
        before = emulated.waits()
        models.step(model, cache, models.prompt(1, seed=turn))
        waiting += emulated.waits() > before
    assert waiting <= 48 // PAGE_TOKENS  # each of the 48 steps cut
    assert cache.stats()["evicted"] > 0


def test_watched_forked_cropped_saved(gates, tmp_path):
    model, config = models.tiny(), config_of(gates)
    plain = ra.ReasonAllocCache(model, config)
    watched = ra.ReasonAllocCache(model, config, record=True, observers=[lambda cut: None])
    for i in range(25):
        ids = models.prompt(40 if i == 0 else 1, rows=2, seed=i)
        assert torch.equal(models.step(model, plain, ids), models.step(model, watched, ids))
    assert caches.contents(plain) == caches.contents(watched)
    with pytest.raises(ValueError, match="what was evicted does not come back"):
        plain.crop(-1)
    plain.save(tmp_path / "cache.safetensors")
    loaded = ra.ReasonAllocCache.load(tmp_path / "cache.safetensors", model)
    for cache in (plain, watched, loaded):
        cache.reorder_cache(torch.tensor([1, 1, 0]))
    for i in range(20):
        ids = models.prompt(1, rows=3, seed=i)
        expected = models.step(model, plain, ids)
        assert torch.equal(expected, models.step(model, watched, ids))
        torch.testing.assert_close(expected, models.step(model, loaded, ids), rtol=1e-5, atol=1e-5)
    assert caches.contents(plain) == caches.contents(watched) == caches.contents(loaded)


def test_another_scorer_for_local_heads(gates):
    """The first and the newest tokens stay, between them the best ones by R-KV's score."""
    model = models.tiny()
    cache = ra.ReasonAllocCache(model, config_of(gates, sparsity=1, scorer="rkv", interval=8, recent=20))
    for i in range(40):
        models.step(model, cache, models.prompt(40 if i == 0 else 1, seed=i))
    held = [p.tolist() for layer in range(3) for p in cache.positions(layer)]
    assert all(p[:3] == [0, 1, 2] for p in held)
    assert len({tuple(p) for p in held}) > 3
    assert np.array(cache.stats()["slots"]).max() <= 23 + 8


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget": 64}, "method 'rlkv' takes no budget"),
        ({"ratio": 0.5}, "method 'rlkv' takes no ratio"),
        ({"recent": 3}, "recent must be at least the window of 4 tokens, got 3"),
        ({"options": {"sinks": 5}}, "sinks is a keyword"),
        ({"sparsity": float("nan")}, "sparsity must lie between"),
        ({"sparsity": "half"}, "sparsity must be a number"),
        ({"layers": "uniform"}, "need both parts"),
        ({"heads": "route", "budget": 64}, "need both parts"),
        ({"options": {"sparsty": 0.4}}, "has no option 'sparsty'"),
    ],
)
def test_settings_that_cannot_be(gates, changes, reason):
    with pytest.raises(ValueError, match=reason):
        config_of(gates, **changes)


def test_no_file():
    with pytest.raises(ValueError, match="method 'rlkv' needs the file 'gates'"):
        ra.Config(method="rlkv")
    with pytest.raises(ValueError, match=r"the file 'gates' does not exist: none\.tsv"):
        ra.Config(method="duo", options={"gates": "none.tsv"})
    with pytest.raises(ValueError, match="need both parts"):
        ra.Config(method="rkv", heads="rlkv", budget=64)
    with pytest.raises(ValueError, match="needs the file 'gates'"):
        ra.Config(method="rkv", heads="rlkv", layers="rlkv", sinks=16)
