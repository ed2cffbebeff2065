"""TriAttention's scores in C against the paper's formula in float64 and numbers of the published code."""

import layers
import models
import numpy as np
import oracle
import pytest
import torch
import triattention_published

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.hf.compat import budgeted_layers
from reasonalloc.policy.triattention import TriAttention
from reasonalloc.store import backends

pytestmark = pytest.mark.core

TEXTS = ["a text of some words " * 12, "another one, with other words in it " * 9]


def generated(model, cache, ids, count):
    """Greedy tokens of a cache that is given ids."""
    found = []
    for _ in range(count):
        ids = models.step(model, cache, ids)[:, -1:].argmax(-1)
        found.append(int(ids))
    return found


SCORE = ("triattention", 0.0, 0.0, 1, 0)


def case(seed, query_heads=4, heads=2, d=16, n=48, pairs=None):
    """(frequency, mean, length, keys before their rotation)."""
    random = np.random.default_rng(seed)
    pairs = d // 2 if pairs is None else pairs
    frequency = 10000.0 ** (-np.arange(pairs) / max(pairs, 1))
    mean = random.standard_normal((query_heads, d))
    length = np.hypot(mean[:, :pairs], mean[:, pairs : 2 * pairs]) + random.uniform(0, 1, (query_heads, pairs))
    return frequency, mean, length, random.standard_normal((heads, n, d))


def layer_of(frequency, mean, length, keys, window=2, interleaved=False, dtype="float32", backend=None, **flags):
    """A layer that holds rotated keys, and these keys as float64."""
    heads, n, d = keys.shape
    rotated = oracle.rotated(keys, np.arange(n), frequency, interleaved)
    pool = _core.Pool(dtype, d, backend)
    core = _core.Layer(pool, 1, heads, len(mean), window, "triattention")
    k = torch.from_numpy(rotated).to(layers.DTYPES[dtype])[None]
    layers.step(pool, core, torch.zeros(1, len(mean), n, d, dtype=k.dtype), k, k, attend=False)
    numbers = (x.astype(np.float32) for x in (mean, length))
    core.set_centres(frequency, *numbers, interleaved, flags.get("largest", False), flags.get("group_mean", False))
    return pool, core, k[0].double().numpy()


def scored(core, heads, n, window, protect=0):
    core.cut_score(np.zeros(1, np.int64), SCORE, np.zeros(1, np.bool_), np.array([protect]))
    out = np.empty(heads * (n - window), np.float32)
    core.cut_scores(0, out)
    core.cut_abandon()
    return out.reshape(heads, -1)


@pytest.mark.parametrize("offsets", ["mean", "max"])
def test_the_published_code(isa, offsets):
    frequency, mean, length, keys = case(2604)
    _pool, core, _ = layer_of(frequency, mean, length, keys, largest=offsets == "max")
    ours = scored(core, 2, 48, 2, protect=4)[:, 4:]
    # its phases are float32: up to 65584 radians, to 4e-3
    np.testing.assert_allclose(ours, triattention_published.PUBLISHED[offsets], atol=5e-3)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("heads", "group", "d", "pairs"), [(2, 2, 16, 8), (1, 7, 22, 11), (2, 3, 64, 32), (1, 4, 20, 6), (1, 1, 8, 0)]
)
def test_the_papers_formula(isa, heads, group, d, pairs, interleaved, largest):
    for n, window, protect, seed in ((3, 2, 0, 1), (40, 8, 0, 2), (131, 4, 17, 3), (64, 1, 90, 4)):
        given = case(seed, heads * group, heads, d, n, pairs)
        if interleaved:
            frequency, mean, _length, keys = given
            real, imaginary = mean[:, 0 : 2 * pairs : 2], mean[:, 1 : 2 * pairs : 2]
            given = frequency, mean, np.hypot(real, imaginary) + 0.3, keys
        for mean_of_group in (False, True):
            flags = {"largest": largest, "group_mean": mean_of_group}
            _pool, core, stored = layer_of(*given, window, interleaved, **flags)
            ours = scored(core, heads, n, window, protect)
            exact = oracle.triattention(*given[:3], stored, n, window, protect, interleaved, **flags)
            np.testing.assert_allclose(ours, exact, atol=2e-3 if pairs == 0 else 2e-4 * max(1, np.abs(exact).max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_formats(isa, dtype):
    given = case(5, 6, 2, 32, 70)
    _pool, core, stored = layer_of(*given, 8, dtype=dtype)
    exact = oracle.triattention(*given[:3], stored, 70, 8)
    np.testing.assert_allclose(scored(core, 2, 70, 8), exact, atol=1e-3)


def test_a_layer_without_centres_and_bad_ones():
    frequency, mean, length, keys = case(1)
    pool, core, _ = layer_of(frequency, mean, length, keys)
    bare = _core.Layer(pool, 1, 2, 4, 2, "triattention")
    k = torch.zeros(1, 2, 8, 16)
    layers.step(pool, bare, torch.zeros(1, 4, 8, 16), k, k, attend=False)
    with pytest.raises(ValueError):
        bare.cut_score(np.zeros(1, np.int64), SCORE, np.zeros(1, np.bool_))
    before = scored(core, 2, 48, 2)
    mean32, length32 = mean.astype(np.float32), length.astype(np.float32)
    bad = mean32.copy()
    bad[1, 3] = np.nan
    for arguments in (
        (frequency, bad, length32),
        (frequency, mean32, -length32),
        (frequency * np.inf, mean32, length32),
    ):
        with pytest.raises(ValueError, match="centres must be finite"):
            core.set_centres(*arguments)
    with pytest.raises(ValueError, match="9 pairs in heads of size 16"):
        core.set_centres(np.ones(9), mean32, np.ones((4, 9), np.float32))
    assert np.array_equal(scored(core, 2, 48, 2), before)


def test_copies_share_centres_and_cuts_allocate_nothing():
    given = case(3, n=100)
    _pool, core, _stored = layer_of(*given)
    copy = core.copy()
    exact = scored(core, 2, 100, 2)
    core.reorder(np.array([0, 0]))
    del core
    assert np.array_equal(scored(copy, 2, 100, 2), exact)
    before = _core.allocations()
    scored(copy, 2, 100, 2)
    assert _core.allocations() == before


# ---- in a cache ----


@pytest.fixture(scope="module")
def calibrated():
    model = models.tiny("llama")
    return model, ra.calibrate(model, models.Words(), TEXTS, progress=False)


def test_the_method(calibrated):
    model, calibration = calibrated
    config = ra.Config(method="triattention", budget=24, interval=8, window=4, calibration=calibration)
    cache = ra.ReasonAllocCache(model, config)
    ids = torch.randint(1, models.VOCAB, (1, 12), generator=torch.Generator().manual_seed(0))
    generated(model, cache, ids, 60)
    stats = cache.stats()
    assert stats["evicted"] > 0 and stats["method"] == "triattention"
    for layer in budgeted_layers(model):
        for positions in cache.positions(layer):
            assert list(positions[:12]) == list(range(12))  # the prompt stays


def test_the_method_on_a_device_keeps_the_same(calibrated, monkeypatch):
    pytest.importorskip("reasonalloc._cuda_emulated")
    model, calibration = calibrated
    held = []
    for name in ("cpu", "cuda-emulated"):
        monkeypatch.setenv(backends.VARIABLE, name)
        for options in ({}, {"offsets": "max", "group": "mean"}, {"selection": "union"}):
            config = ra.Config(
                method="triattention", budget=24, interval=8, window=4, calibration=calibration, options=options
            )
            cache = ra.ReasonAllocCache(model, config)
            generated(model, cache, models.prompt(30), 40)
            assert cache.stats()["backends"] == [f"{name} on cpu"]
            assert cache.stats()["evicted"] > 0
            held.append([[list(p) for p in cache.positions(layer)] for layer in budgeted_layers(model)])
    assert held[:3] == held[3:]


def test_centres_of_a_device_are_the_newest():
    module = pytest.importorskip("reasonalloc._cuda_emulated")
    found = []
    for backend in (None, module.backend):
        core = layer_of(*case(5), backend=backend)[1]
        twin = core.copy()
        found.append([scored(core, 2, 48, 2)])
        frequency, mean, length, _keys = case(6)
        core.set_centres(frequency, mean.astype(np.float32), length.astype(np.float32), True, True)
        found[-1] += [scored(core, 2, 48, 2), scored(core, 2, 48, 2, 20), scored(twin, 2, 48, 2)]
    for got, want in zip(*reversed(found), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(found[1][0] - found[1][1]).max() > 0.1


def test_a_cut_in_a_cache_is_the_oracles(calibrated):
    """What each head keeps, by its keys and the calibration alone."""
    model, calibration = calibrated
    views = []
    config = ra.Config(method="triattention", budget=24, interval=8, window=4, calibration=calibration)
    cache = ra.ReasonAllocCache(model, config, observers=[views.append])
    keys = {}
    ids = torch.randint(1, models.VOCAB, (1, 40), generator=torch.Generator().manual_seed(1))
    from reasonalloc.hf.attention import using
    from reasonalloc.hf.compat import cache_argument
    from reasonalloc.hf.watch import WatchedCache

    with torch.no_grad():
        with using(model):
            watched = WatchedCache(model, lambda i, q, k, v: keys.__setitem__(i, k[0].double().numpy()))
            model(input_ids=ids, **cache_argument(watched), use_cache=True)
        model(input_ids=ids, **cache_argument(cache), use_cache=True)
        cache.stats()  # the prompt is over
    assert len(views) == len(budgeted_layers(model))
    for view in views:
        own = calibration.layers[view.layer]
        exact = oracle.triattention(
            own.frequency.numpy(), own.query_mean.numpy(), own.query_length.numpy(), keys[view.layer], 40, 4, 40
        )
        for head, scores in enumerate(view.scores):
            np.testing.assert_allclose(scores, exact[head], atol=1e-3)


def test_what_the_config_refuses(calibrated, tmp_path):
    model, calibration = calibrated
    with pytest.raises(ValueError, match="'triattention' needs a calibration"):
        ra.Config(method="triattention", budget=24)
    ranges = ra.calibrate(model, models.Words(), TEXTS, for_="ranges", progress=False)
    with pytest.raises(ValueError, match="needs the queries"):
        ra.Config(method="triattention", budget=24, calibration=ranges)
    with pytest.raises(ValueError, match="calibration must be"):
        ra.Config(method="triattention", budget=24, calibration=3)
    with pytest.raises(ValueError, match="offsets must be one of 'mean', 'max'"):
        ra.Config(method="triattention", budget=24, calibration=calibration, options={"offsets": "least"})
    config = ra.Config(method="triattention", budget=24, calibration=calibration)
    assert isinstance(config.policy().scorer, TriAttention)
    with pytest.raises(ValueError, match="of another model"):
        ra.ReasonAllocCache(models.tiny("llama", seed=3), config)
    with pytest.raises(ValueError, match=r"of another model.*qwen2"):
        ra.ReasonAllocCache(models.tiny("qwen2"), config)
    with pytest.raises(ValueError, match="save it first"):
        ra.ReasonAllocCache(model, config).save(tmp_path / "cache")


def test_a_saved_cache(calibrated, tmp_path):
    model, calibration = calibrated
    calibration.save(tmp_path / "model.calibration")
    config = ra.Config(method="triattention", budget=24, interval=8, calibration=str(tmp_path / "model.calibration"))
    assert config.calibration == calibration
    caches = [ra.ReasonAllocCache(model, config) for _ in range(2)]
    ids = torch.randint(1, models.VOCAB, (1, 40), generator=torch.Generator().manual_seed(1))
    for cache in caches:
        generated(model, cache, ids, 5)
    caches[0].save(tmp_path / "cache")
    loaded = ra.ReasonAllocCache.load(tmp_path / "cache", model)
    next_ids = torch.ones(1, 1, dtype=torch.long)
    ends = [generated(model, cache, next_ids, 30) for cache in (caches[1], loaded)]
    assert ends[0] == ends[1] and loaded.stats()["evicted"] > 0


def test_beside_stock_and_other_parts(calibrated):
    """Nothing evicted: stock tokens. As a part of other methods it runs too, routed and pooled."""
    model, calibration = calibrated
    ids = torch.randint(1, models.VOCAB, (1, 20), generator=torch.Generator().manual_seed(2))
    from transformers.cache_utils import DynamicCache

    roomy = ra.Config(method="triattention", budget=500, calibration=calibration)
    stock = generated(model, DynamicCache(config=model.config), ids, 30)
    assert generated(model, ra.ReasonAllocCache(model, roomy), ids, 30) == stock
    for heads in ("route", "pooled"):
        config = ra.Config(
            method="rkv", scorer="triattention", heads=heads, budget=24, interval=8, calibration=calibration
        )
        cache = ra.ReasonAllocCache(model, config)
        generated(model, cache, ids, 40)
        assert cache.stats()["evicted"] > 0


def test_other_selections(calibrated):
    """One set of tokens: "per_head" for each KV head in all layers, "union" for all heads."""
    model, calibration = calibrated
    for selection in ("per_head", "union"):
        config = ra.Config(
            method="triattention",
            budget=24,
            interval=8,
            calibration=calibration,
            options={"selection": selection},
        )
        views = []
        cache = ra.ReasonAllocCache(model, config, observers=[views.append])
        generated(model, cache, models.prompt(12), 60)
        assert cache.stats()["evicted"] > 0
        for head in range(2):
            held = {tuple(cache.positions(i, 0)[head]) for i in budgeted_layers(model)}
            assert len(held) == 1
        assert (len({tuple(x) for x in cache.positions(0, 0)}) == 1) == (selection == "union")
        with pytest.raises(ValueError, match="needs all layers to hold the same tokens"):
            mixed = ra.Config(
                method="triattention",
                budget=24,
                interval=8,
                layers="pyramid",
                calibration=calibration,
                options={"selection": selection},
            )
            generated(model, ra.ReasonAllocCache(model, mixed), models.prompt(12), 60)


@pytest.mark.parametrize("turn", [0, 1])
def test_a_row_alone_is_the_row_in_a_padded_batch(calibrated, turn):
    model, calibration = calibrated
    config = ra.Config(method="triattention", budget=24, interval=8, calibration=calibration)
    prompts = [models.prompt(9)[0], models.prompt(21, seed=5)[0]]
    ids, mask = models.left_padded(prompts)
    batch, alone = (ra.ReasonAllocCache(model, config) for _ in range(2))
    own = prompts[turn][None]
    for _ in range(40):
        logits = models.step(model, batch, ids, mask)[:, -1:]
        models.step(model, alone, own)
        ids = logits.argmax(-1)
        own, mask = ids[turn : turn + 1], torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    assert alone.stats()["evicted"] > 0
    for layer in budgeted_layers(model):
        for one, other in zip(alone.positions(layer, 0), batch.positions(layer, turn), strict=True):
            assert np.array_equal(one, other)
