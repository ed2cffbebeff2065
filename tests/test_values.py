"""Value range and norm, the scorers that use them, and the published forms of SnapKV, Ada-KV and PyramidKV."""

import models
import numpy as np
import oracle_values as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import add_pages, cut, positions, read, scores, scores_by_head, step, tokens
from test_methods import config_of, run

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.policy.published import DKV, VATP, SnapKVPublished, VaSE

pytestmark = pytest.mark.core

HEADS, GROUP, DIM, WINDOW = 2, 3, 20, 4
SHAPE = (1, HEADS, GROUP, DIM)
EVEN = (0, 0.5, 0.25, 2.0, 0.25, 0.2)


def layer_of(scorer, dtype="float32", rows=1):
    pool = _core.Pool(dtype, DIM)
    return pool, _core.Layer(pool, rows, HEADS, HEADS * GROUP, WINDOW, scorer)


def fed(scorer, n=60, dtype="float32", seed=0, decoded=3):
    """A layer that has been given n tokens, of which the last `decoded` came one by one."""
    pool, layer = layer_of(scorer, dtype)
    for i, count in enumerate((n - decoded, *[1] * decoded)):
        step(pool, layer, *tokens(SHAPE, count, seed=100 * seed + i))
    return pool, layer


def scores_of(layer, config):
    return scores_by_head(layer, 0, config, HEADS, WINDOW)


def state_of(layer, head):
    """Queries of a head's group [G, W, D], keys, values, positions."""
    count, raw = layer.queries(0)
    queries = np.frombuffer(raw, np.float32).reshape(HEADS * GROUP, count, DIM)[head * GROUP : (head + 1) * GROUP]
    keys, values = (read(layer, 0, head, DIM, which) for which in (False, True))
    return queries, keys, values, positions(layer, 0, head)


# ---- Scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_snapkv_and_vatp_by_definition(isa, dtype, pool):
    for part in (SnapKVPublished(pool=pool), SnapKVPublished(pool=pool, width=1), VATP(pool=pool, width=9), VATP()):
        arguments = part.arguments(0)
        memory, layer = fed(arguments.scorer, dtype=dtype)
        for total in (90, 70, 50):
            for head, got in enumerate(scores_of(layer, arguments)):
                queries, keys, values, _ = state_of(layer, head)
                older = len(keys) - WINDOW
                kind = "avg" if arguments.average else "max"
                want = oracle.head_attention(queries, keys, older, True, kind, arguments.kernel, DIM**-0.5)
                if isinstance(part, VATP):
                    want *= np.abs(values[:older].astype(np.float64)).sum(1)
                np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-9)
            cut(memory, layer, HEADS, [total], score=arguments)
            step(memory, layer, *tokens(SHAPE, 7, seed=total))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_vase_by_definition(isa, dtype):
    part = VaSE(seed=7, n_large=9, n_sink=3)
    arguments = part.arguments(2)
    pool, layer = fed("vase", dtype=dtype)
    for total in (100, 80, 60):
        before = {h: state_of(layer, h) for h in range(HEADS)}
        found = scores_of(layer, arguments)
        for head, (queries, keys, values, where) in before.items():
            older = len(keys) - WINDOW
            p = oracle.head_attention(queries, keys, older, False, "avg", 5, DIM**-0.5)
            seed, given = 7 * 1_000_003 + 2, layer.tokens(0)
            want = np.array([-oracle.exponential(seed, head, int(where[i]), given) / p[i] for i in range(older)])
            is_large = oracle.large(values, older, 9, 3)
            assert is_large.sum() == 9
            assert (found[head] >= 0).tolist() == is_large.tolist()
            np.testing.assert_allclose(found[head][~is_large], want[~is_large], rtol=2e-5)
            own = oracle.coarse(oracle.ranges(values)[:older])
            np.testing.assert_allclose(found[head][is_large][3:], own[is_large][3:], rtol=3e-4)
            assert (found[head][:3] > found[head][3:].max()).all()
        cut(pool, layer, HEADS, [total], score=arguments, route=EVEN)
        for head, (_, keys, _, where) in before.items():
            order = np.argsort(-found[head], kind="stable")[: total // HEADS - WINDOW]
            stays = sorted([*where[order], *where[len(keys) - WINDOW :]])
            assert positions(layer, 0, head).tolist() == stays
        step(pool, layer, *tokens(SHAPE, 9, seed=total))


def test_dkv_by_definition(isa):
    arguments = DKV(seed=3, n_sink=2).arguments(1)
    pool, layer = fed("dkv")
    for total in (80, 60):
        matrix = oracle.gaussian(3 * 1_000_003 + 1, layer.tokens(0), DIM)
        for head, got in enumerate(scores_of(layer, arguments)):
            _, keys, values, _ = state_of(layer, head)
            np.testing.assert_allclose(got, oracle.dkv(keys, values, len(keys) - WINDOW, matrix, 2), rtol=3e-5)
        cut(pool, layer, HEADS, [total], score=arguments)
        step(pool, layer, *tokens(SHAPE, 9, seed=total))


def test_softcapping_and_attention_sinks():
    """Published SnapKV's softmax is the model's: soft-capped, with the sink's logit beside the others."""
    sinks = np.linspace(-1, 2, HEADS * GROUP).astype(np.float32)
    pool, layer = layer_of("snapkv-published")
    q, k, v = tokens(SHAPE, 50)
    while missing := layer.step(q, k, v, None, 0.3, None, None, None, 2.0, sinks):
        add_pages(pool, missing)
    for head, got in enumerate(scores_of(layer, SnapKVPublished().arguments(0))):
        queries, keys, _, _ = state_of(layer, head)
        own = sinks[head * GROUP : (head + 1) * GROUP]
        want = oracle.head_attention(queries, keys, len(keys) - WINDOW, True, "avg", 5, 0.3, 2.0, own)
        np.testing.assert_allclose(got, want, rtol=2e-5)


# ---- The statistics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("part", [VaSE(n_large=6), VATP()], ids=lambda part: part.name)
def test_what_is_kept_is_what_the_pages_say(isa, dtype, part):
    """Bit for bit, through cuts, forks, crops, reordering and restoring: a layer that keeps none reads the pages."""
    arguments = part.arguments(0)
    (pool, layer), (other_pool, other) = (layer_of(s, dtype) for s in (part.core, None))
    for turn in range(6):
        for i, count in enumerate((21, 1, 1)):
            new = tokens(SHAPE, count, seed=10 * turn + i)
            step(pool, layer, *new)
            step(other_pool, other, *new)
        for a, b in zip(scores_of(layer, arguments), scores_of(other, arguments), strict=True):
            assert a.tobytes() == b.tobytes()
        assert cut(pool, layer, HEADS, [61], score=arguments)[0].tolist() == (
            cut(other_pool, other, HEADS, [61], score=arguments)[0].tolist()
        )
        for each in (layer, other):
            if turn == 1:
                each.crop(np.array([2]))
            if turn == 2:
                each.reorder(np.zeros(2, np.int64))
                each.reorder(np.array([1]))
        if turn == 3:
            pool, layer = restored(layer, part.core, dtype)
        if turn == 4:
            layer = layer.copy()


def restored(layer, scorer, dtype):
    pool, twin = layer_of(scorer, dtype)
    for head in range(HEADS):
        _, keys, values, where = state_of(layer, head)
        while missing := twin.restore(0, head, where.copy(), keys, values):
            add_pages(pool, missing)
    count, raw = layer.queries(0)
    twin.restore_row(0, layer.tokens(0), count, np.frombuffer(raw, np.float32), DIM**-0.5, 0.0)
    return pool, twin


def test_scores_of_the_instruction_sets_choose_alike():
    """Ranges are the same bits on all; a draw would need two numbers within rounding to differ."""
    before, kept = _core.isa(), []
    try:
        for name in _core.isas():
            _core.set_isa(name)
            pool, layer = fed("vase", 200)
            cut(pool, layer, HEADS, [120], score=VaSE().arguments(0), route=EVEN)
            kept.append([positions(layer, 0, h).tolist() for h in range(HEADS)])
    finally:
        _core.set_isa(before)
    assert all(x == kept[0] for x in kept)


# ---- Against the published code --------------------------------------------------------------------------------------

# By the code of VaSE (file 55167385656 of the stored sources, mode small_range_sink_sample_attn, n_large 9): the
# largest ranges, and the weights that it draws the others by, for `published_states`.
LARGE = [[0, 1, 2, 3, 5, 15, 18, 22, 23], [0, 1, 2, 3, 4, 6, 8, 13, 18]]
WEIGHTS = [
    [0.0, 0.0, 0.0, 0.0, 0.0295011, 0.0, 0.0263871, 0.0249919, 0.0257219, 0.0258209, 0.0262573, 0.0267951, 0.0286808,
     0.0288485, 0.0290388, 0.0, 0.0307683, 0.033787, 0.0, 0.0385665, 0.0398983, 0.0396312, 0.0, 0.0, 0.0430655,
     0.0509636, 0.0443139, 0.0359424],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0336124, 0.0, 0.0335432, 0.0, 0.0317164, 0.0304533, 0.0295482, 0.0299691, 0.0,
     0.0292778, 0.0295377, 0.0302762, 0.030478, 0.0, 0.0335052, 0.0352535, 0.0372193, 0.0404761, 0.0427338, 0.0448262,
     0.0484794, 0.0402372, 0.0305366],
]  # fmt: skip


def published_states(n=40, query_heads=4, heads=2, d=16):
    random = np.random.default_rng(606)
    q = (random.standard_normal((query_heads, n, d)) * 1.5).astype(np.float32)
    k = np.cumsum(random.standard_normal((heads, n, d)) * 0.3, 1).astype(np.float32)
    v = (random.standard_normal((heads, n, d)) * random.uniform(0.5, 2, (heads, n, 1))).astype(np.float32)
    return q, k, v


def published_layer():
    pool = _core.Pool("float32", 16)
    layer = _core.Layer(pool, 1, 2, 4, 12, "vase")
    q, k, v = (torch.from_numpy(x)[None] for x in published_states())
    while missing := layer.step(q, k, v, None, 0.25):
        add_pages(pool, missing)
    return layer


def test_vase_is_what_its_code_computes():
    layer, arguments = published_layer(), VaSE(n_large=9).arguments(0)
    out = np.zeros(2 * 28, np.float32)
    scores(layer, 0, arguments, out)
    for head, got in enumerate(np.split(out, 2)):
        assert np.flatnonzero(got >= 0).tolist() == LARGE[head]
        drawn = np.flatnonzero(got < 0)
        number = np.array([oracle.exponential(0, head, int(i), 40) for i in drawn])
        np.testing.assert_allclose(-number / got[drawn], np.array(WEIGHTS[head])[drawn], rtol=3e-5)


def test_draws_follow_the_weights():
    """The first of the others is drawn with its weight's probability: chi-square over 28 - 9 tokens, 4000 seeds."""
    layer, count = published_layer(), 4000
    weights = np.array(WEIGHTS[0])
    first, out = np.zeros(28), np.zeros(2 * 28, np.float32)
    for seed in range(count):
        scores(layer, 0, VaSE(n_large=9, seed=seed).arguments(0), out)
        own = out[:28]
        first[np.argmax(np.where(own < 0, own, -np.inf))] += 1
    expected = weights / weights.sum() * count
    drawn = weights > 0
    assert first[~drawn].sum() == 0
    chi = ((first - expected)[drawn] ** 2 / expected[drawn]).sum()
    assert chi < 42.3  # 0.1 % of 18 degrees of freedom


@pytest.mark.parametrize(("share", "large"), [(64, 32), (512, 256), (513, 200), (1024, 200)])
def test_how_many_large_ranges(share, large):
    pool, layer = layer_of("vase")
    step(pool, layer, *tokens(SHAPE, share + 100), attend=False)
    out = np.zeros(HEADS * (share + 100 - WINDOW), np.float32)
    layer.cut_score(np.array([share * HEADS]), VaSE().arguments(0), np.zeros(1, np.bool_))
    layer.cut_scores(0, out)
    assert [(x >= 0).sum() for x in np.split(out, HEADS)] == [large] * HEADS


# ---- Degenerate states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [VaSE(n_large=5), VATP(), DKV(), SnapKVPublished()], ids=lambda part: part.name)
@pytest.mark.parametrize("kind", ["zero values", "equal keys", "large values", "no queries", "short"])
def test_odd_states_have_scores(part, kind):
    pool, layer = layer_of(part.core)
    q, k, v = tokens(SHAPE, 6 if kind == "short" else 50)
    if kind == "zero values":
        v = v * 0
    if kind == "equal keys":
        k, q = k * 0 + 1, q * 0
    if kind == "large values":
        v = v * (1e12 if part.core == "dkv" else 1e38 / v.abs().max())
    step(pool, layer, q, k, v, attend=False)
    if kind == "no queries":
        layer.crop(np.array([5]))  # and with it the queries
    for got in scores_of(layer, part.arguments(0)):
        assert np.isfinite(got).all()


# ---- Allocators ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 8), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
@settings(max_examples=200, deadline=None)
def test_pooled_heads_are_adakv_s_mix(seed, heads, window, safeguard):
    """round((1 - f) c_h + f base) above the window, as far as integers that sum to the total can be."""
    random = np.random.default_rng(seed)
    arrays = [random.permutation(10_000)[: random.integers(1, 60)] + 0.125 * h for h in range(heads)]
    total = heads * window + int(random.integers(0, sum(map(len, arrays)) + 1))
    shares = ra.allocate.route(arrays, total, heads="pooled", window=window, safeguard=safeguard)
    assert int(shares.sum()) == total
    assert np.abs(shares - oracle.pooled_mix(arrays, total, window, safeguard)).max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("layers", "capacity", "window", "n", "want"),
    [  # by hand from the code's lines: C = capacity - window
        (4, 68, 8, 1000, [125, 87, 49, 11]),  # C 60: 117 ... 3, step 114 // 3 = 38
        (4, 68, 8, 119, [68] * 4),  # below 2 C
        (4, 68, 8, 121, [121, 86, 51, 16]),  # no more than there is: 113 ... 7, step 106 // 3 = 35
        (1, 68, 8, 1000, [68]),
        (30, 256, 8, 4000, [492 - 16 * i for i in range(30)]),
    ],
)
def test_pyramid_as_published(layers, capacity, window, n, want):
    got = ra.allocate.pyramid_published(layers, capacity, window, n)
    assert got == want
    assert 0 <= sum(got) - layers * capacity <= layers * (layers - 1) / 2


def test_a_cache_by_the_published_pyramid():
    model = models.tiny()
    cache, _ = run(model, config_of("pyramidkv-published"))
    want = ra.allocate.pyramid_published(3, 24, 4, 50 + 24)
    assert [sum(heads) for heads in cache.stats()["budgets"][0]] == [x * 2 for x in want]


def test_settings_are_checked():
    for part, given_, message in (
        (VaSE, {"n_large": -1}, "n_large must lie"),
        (VaSE, {"width": 4}, "width must be odd"),
        (VaSE, {"n_sink": 1.5}, "n_sink must be a whole number"),
        (SnapKVPublished, {"pool": "mean"}, "pool must be one of 'avg', 'max', got 'mean'"),
        (DKV, {"seed": -1}, "seed must lie"),
    ):
        with pytest.raises(ValueError, match=message):
            part(**given_)
    config = ra.Config(method="vase", budget=64, seed=5, options={"n_large": 7, "n_sink": 2})
    assert config.policy().scorer == VaSE(seed=5, n_large=7, n_sink=2)
    assert config.policy().core_scorer == "vase"
    with pytest.raises(ValueError, match="no option 'large'"):
        ra.Config(method="vase", budget=64, options={"large": 7})


def test_a_seed_and_a_cut_give_other_draws():
    model = models.tiny()
    kept = [run(model, config_of("vase", seed=seed))[1][-1] for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
