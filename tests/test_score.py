"""ra.score and _core.select against the published definitions in float64."""

import models
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.hf.compat import cache_argument

pytestmark = pytest.mark.core

SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 97, 128, 255, 257, 431, 600)


# ---- Inputs ----------------------------------------------------------------------------------------------------------


def random_keys(n, d, random):
    return random.standard_normal((n, d))


def walking_keys(n, d, random):
    """Each key like the one before it, as real ones are."""
    return np.cumsum(random.standard_normal((n, d)) * 0.4, 0) + random.standard_normal(d) * 2


def repeating_keys(n, d, random):
    """Phrases said again, with noise."""
    base = random.standard_normal((max(1, n // 5), d))
    return base[np.arange(n) % len(base)] * random.uniform(0.5, 2, (n, 1)) + random.standard_normal((n, d)) * 0.05


def one_sided_keys(n, d, random):
    """A large common part, so that every pair is similar."""
    return random.standard_normal((n, d)) * 0.3 + 3


def odd_keys(n, d, random):
    """Zero, tiny and very long keys among others."""
    keys = random.standard_normal((n, d))
    keys[::3] *= 1e-8
    keys[1::5] = 0
    keys[2::7] *= 1e4
    return keys


KINDS = {f.__name__: f for f in (random_keys, walking_keys, repeating_keys, one_sided_keys, odd_keys)}


def inputs(n, window=8, group=3, heads=1, d=24, kind="random_keys", seed=0):
    random = np.random.default_rng([seed, n, window, group])
    keys = np.stack([KINDS[kind](n, d, random) for _ in range(heads)]).astype(np.float32)
    queries = (random.standard_normal((heads * group, min(window, n), d)) * 2).astype(np.float32)
    return queries, keys


def check(queries, keys, alpha=0.1, threshold=0.5, kernel=7):
    """All three scores against the oracle, head by head."""
    heads = len(keys)
    group = len(queries) // heads
    score = ra.score.rkv(queries, keys, alpha, threshold, kernel)
    important = ra.score.importance(queries, keys, kernel)
    redundant = ra.score.redundancy(keys, threshold)
    older = keys.shape[1] - queries.shape[1]
    assert score.shape == important.shape == (heads, older)
    assert redundant.shape == keys.shape[:2]
    assert score.dtype == important.dtype == redundant.dtype == np.float32
    for h in range(heads):
        own = queries[h * group : (h + 1) * group]
        np.testing.assert_allclose(important[h], oracle.importance(own, keys[h], kernel), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(redundant[h].sum(), 1, rtol=1e-5)
        if oracle.redundancy_margin(keys[h], threshold) > 1e-5:
            np.testing.assert_allclose(redundant[h], oracle.redundancy(keys[h], threshold), rtol=1e-4, atol=1e-7)
            expected = oracle.rkv(own, keys[h], alpha, threshold, kernel)
            np.testing.assert_allclose(score[h], expected, rtol=0, atol=1e-5)


# ---- Against the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_scores_are_the_published_ones(isa, n, kind):
    check(*inputs(n, kind=kind))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_centred_scores_lie_by_the_mean_redundancy_higher(isa, n, alpha):
    queries, keys = inputs(n, heads=2)
    plain, centred = (ra.score.rkv(queries, keys, alpha, centred=x) for x in (False, True))
    np.testing.assert_allclose(centred, plain + (1 - alpha) / n, rtol=1e-5, atol=1e-7)


def test_routing_by_centred_scores_does_not_favour_the_head_with_more_slots():
    """Two heads with keys of one kind, one with three times the tokens: by the published score it takes all."""
    for centred, least, most in ((False, 8, 8), (True, 40, 60)):  # the window alone; a quarter
        scores = [ra.score.rkv(*inputs(n), alpha=0.0, centred=centred)[0] for n in (96, 288)]
        own = ra.allocate.route(scores, 200, window=8, gamma=1.0, mu=0.0, lo=0.0)[0]
        assert least <= own <= most, (centred, own)


@pytest.mark.parametrize("group", [1, 3, 4, 8])
@pytest.mark.parametrize("window", [1, 8])
def test_groups_and_windows(isa, group, window):
    for n in (window, window + 1, 40, 131):
        check(*inputs(n, window, group, heads=2, kind="walking_keys"))


@pytest.mark.parametrize("d", [1, 2, 5, 16, 17, 64, 80, 128, 256])
def test_head_sizes(isa, d):
    check(*inputs(73, d=d))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 1.0])
def test_thresholds(isa, threshold):
    for kind in ("random_keys", "one_sided_keys"):
        check(*inputs(90, kind=kind), threshold=threshold)


@pytest.mark.parametrize("threshold", [-1.0, -0.3])
def test_the_zero_diagonal_is_above_a_negative_threshold(isa, threshold):
    """As the definition has it: the diagonal is set to zero first, then compared like the rest."""
    check(*inputs(90, kind="random_keys"), threshold=threshold)


@pytest.mark.parametrize("kernel", [1, 3, 7, 31, 999])
def test_kernels(isa, kernel):
    for n in (9, 10, 40, 100):
        check(*inputs(n), kernel=kernel)


@pytest.mark.parametrize("alpha", [0.0, 0.07, 0.5, 1.0])
def test_weights(isa, alpha):
    check(*inputs(100, kind="repeating_keys"), alpha=alpha)


def test_the_threshold_itself_is_not_similar(isa):
    """One-hot keys have cosines of exactly 0 and 1: at a threshold of 0 the zeros do not count."""
    keys = np.eye(8, dtype=np.float32)[[0, 1, 2, 0, 3, 1, 4, 5, 6, 7]]
    for threshold in (0.0, 0.5):
        expected = oracle.redundancy(keys, threshold)
        np.testing.assert_allclose(ra.score.redundancy(keys[None], threshold)[0], expected, rtol=1e-5)


def test_only_the_newest_similar_entry_is_zeroed(isa):
    keys = np.ones((1, 5, 4), np.float32)
    # rows 0 to 3 drop their entry of column 4, row 4 that of column 3
    columns = np.array([4, 4, 4, 3, 0]) / 5
    np.testing.assert_allclose(ra.score.redundancy(keys)[0], oracle.softmax(columns), rtol=1e-5)


def test_equal_keys_score_alike(isa):
    queries, keys = inputs(60, kind="random_keys")
    keys[0, 20:30] = keys[0, 20]
    important = ra.score.importance(queries, keys, 1)[0]
    assert len(set(important[20:30].tolist())) == 1


def test_large_logits(isa):
    queries, keys = inputs(50)
    important = ra.score.importance(queries * 1e3, keys * 1e3)
    np.testing.assert_allclose(important[0], oracle.importance(queries * 1e3, keys[0] * 1e3), atol=1e-5)


def test_instruction_sets_agree():
    before, results = _core.isa(), []
    try:
        for name in _core.isas():
            _core.set_isa(name)
            results.append(ra.score.rkv(*inputs(300, kind="walking_keys")))
    finally:
        _core.set_isa(before)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-6, rtol=0)


@given(
    n=st.integers(1, 80),
    window=st.integers(1, 12),
    group=st.integers(1, 5),
    d=st.integers(1, 40),
    kind=st.sampled_from(list(KINDS)),
    threshold=st.sampled_from([0.1, 0.5, 0.8]),
    kernel=st.sampled_from([1, 5, 7]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150)
def test_any_sizes(n, window, group, d, kind, threshold, kernel, seed):
    check(*inputs(n, window, group, 1, d, kind, seed), threshold=threshold, kernel=kernel)


@pytest.mark.slow
def test_real_keys(smol):
    """Post-RoPE keys and queries of SmolLM2 on a text like MATH-500's, every layer and head."""
    from transformers import AttentionInterface, DynamicCache
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    seen = []

    def capture(module, query, key, value, mask, **kwargs):
        seen.append((query[0].numpy(), key[0].numpy()))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("test-capture", capture)
    AttentionMaskInterface.register("test-capture", sdpa_mask)
    model, tokenizer = smol
    before = model.config._attn_implementation
    model.set_attn_implementation("test-capture")
    try:
        ids = tokenizer(models.MATH_TEXT, return_tensors="pt").input_ids
        with torch.no_grad():
            model(ids, **cache_argument(DynamicCache(config=model.config)))
    finally:
        model.set_attn_implementation(before)
    assert len(seen) == 30
    assert ids.shape[1] > 400
    unclear = 0
    isas, isa = _core.isas(), _core.isa()
    try:
        for queries, keys in seen:
            queries = queries[:, -8:]
            given = []
            for name in isas:
                _core.set_isa(name)
                given.append(ra.score.rkv(queries, keys))
            for h in range(3):
                expected = oracle.rkv(queries[h * 3 : h * 3 + 3], keys[h])
                unclear += oracle.redundancy_margin(keys[h]) < 1e-6
                for score in given:
                    np.testing.assert_allclose(score[h], expected, rtol=0, atol=1e-5)
    finally:
        _core.set_isa(isa)
    assert unclear < 30  # else the comparison would have said little


# ---- What is taken and given -----------------------------------------------------------------------------------------


def test_tensors_in_tensors_out():
    queries, keys = inputs(30)
    expected = ra.score.rkv(queries, keys)
    given = ra.score.rkv(torch.from_numpy(queries), torch.from_numpy(keys))
    assert isinstance(given, torch.Tensor)
    assert given.dtype == torch.float32
    np.testing.assert_array_equal(given.numpy(), expected)
    np.testing.assert_array_equal(ra.score.rkv(queries.tolist(), keys.tolist()), expected)
    np.testing.assert_array_equal(ra.score.rkv(queries[:, ::-1][:, ::-1], np.asfortranarray(keys)), expected)
    half = ra.score.importance(torch.from_numpy(queries).bfloat16(), torch.from_numpy(keys).bfloat16())
    assert half.dtype == torch.float32
    grad = ra.score.redundancy(torch.from_numpy(keys).requires_grad_())
    assert not grad.requires_grad


def test_inputs_stay_as_they_were():
    queries, keys = inputs(50, heads=2)
    copies = queries.copy(), keys.copy()
    ra.score.rkv(queries, keys)
    assert np.array_equal(queries, copies[0])
    assert np.array_equal(keys, copies[1])


def test_a_window_and_nothing_else():
    queries, keys = inputs(8)
    assert ra.score.rkv(queries, keys).shape == (1, 0)
    assert ra.score.redundancy(keys).shape == (1, 8)
    assert ra.score.redundancy(keys[:, :1]).tolist() == [[1.0]]


def poisoned(x, value):
    x = x.copy()
    x[0, -1, -1] = value
    return x


QUERIES, KEYS = inputs(20, heads=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ra.score.rkv(QUERIES[0], KEYS), "queries must have 3"),
        (lambda: ra.score.rkv(QUERIES, KEYS[0]), "keys must have 3"),
        (lambda: ra.score.rkv(QUERIES, KEYS[:, :0]), "non-empty"),
        (lambda: ra.score.rkv(QUERIES[:, :0], KEYS), "non-empty"),
        (lambda: ra.score.rkv(QUERIES[:5], KEYS), "do not fit"),
        (lambda: ra.score.rkv(QUERIES[..., :7], KEYS), "do not fit"),
        (lambda: ra.score.rkv(QUERIES, KEYS[:, :7]), "7 keys are fewer than the 8 queries"),
        (lambda: ra.score.rkv(poisoned(QUERIES, np.nan), KEYS), "queries must be finite"),
        (lambda: ra.score.rkv(QUERIES, poisoned(KEYS, np.inf)), "keys must be finite"),
        (lambda: ra.score.redundancy(poisoned(KEYS, -np.inf)), "keys must be finite"),
        (lambda: ra.score.rkv(QUERIES, KEYS, alpha=1.5), "alpha"),
        (lambda: ra.score.rkv(QUERIES, KEYS, alpha=float("nan")), "alpha"),
        (lambda: ra.score.rkv(QUERIES, KEYS, kernel=4), "kernel"),
        (lambda: ra.score.importance(QUERIES, KEYS, kernel=0), "kernel"),
        (lambda: ra.score.redundancy(KEYS, threshold=float("nan")), ""),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message or None):
        call()


def test_dense_core_refuses_buffers_that_do_not_fit():
    q, k = np.zeros((3, 8, 4), np.float32), np.zeros((20, 4), np.float32)
    good = [
        q,
        3,
        8,
        k,
        20,
        4,
        ("rkv", 0.1, 0.5, 7, 0),
        np.zeros(12, np.float32),
        np.zeros(12, np.float32),
        np.zeros(20, np.float32),
    ]
    _core.score_dense(*good)
    for index, bad in [
        (0, q[:2]),
        (0, q.astype(np.float64)),
        (1, 0),
        (1, 2),
        (2, 21),
        (3, k[:19]),
        (4, 2**62),
        (5, 0),
        (5, 2**40),
        (6, ("recency", 0.1, 0.5, 7, 0)),
        (6, ("none", 0.1, 0.5, 7, 0)),
        (7, np.zeros(11, np.float32)),
        (8, np.zeros(13, np.float32)),
        (9, np.zeros(12, np.float32)),
    ]:
        with pytest.raises((ValueError, MemoryError, OverflowError)):
            _core.score_dense(*[bad if i == index else x for i, x in enumerate(good)])


# ---- Which tokens stay -----------------------------------------------------------------------------------------------


def select(scores, keep, protect=0):
    out = np.empty(keep, np.int64)
    _core.select(np.asarray(scores, np.float32), keep, protect, out)
    return out.tolist()


@given(data=st.data(), levels=st.sampled_from([1, 2, 5, 10**6]), n=st.integers(0, 200), seed=st.integers(0, 10**6))
@settings(max_examples=300)
def test_the_best_stay_ties_to_the_newer(data, levels, n, seed):
    scores = np.random.default_rng(seed).integers(-levels, levels, n).astype(np.float32)
    keep = data.draw(st.integers(0, n))
    protect = data.draw(st.integers(0, n + 3))
    assert select(scores, keep, protect) == oracle.select(scores, keep, protect)


def test_selection_of_sorted_and_equal_scores():
    n = 1000
    for scores in (
        np.arange(n),
        -np.arange(n),
        np.zeros(n),
        np.arange(n) % 2,
        np.r_[np.zeros(n // 2), np.ones(n // 2)],
    ):
        assert select(scores, 300) == oracle.select(scores, 300)
    assert select([-0.0, 0.0, -0.0], 1) == [2]  # zeros of both signs are equal
    assert select(np.full(5, np.finfo(np.float32).max), 2) == [3, 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_selection_of_scores_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        select([0.0, bad, 1.0], 2)


@pytest.mark.parametrize("arguments", [(4, 0), (-1, 0), (2, -1)])
def test_selection_that_cannot_be(arguments):
    with pytest.raises(ValueError):
        _core.select(np.zeros(3, np.float32), *arguments, np.empty(max(arguments[0], 0), np.int64))
