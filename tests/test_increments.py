"""What a layer remembers from one cut to the next changes no result: scores and lost mass against float64 forms."""

import layers
import numpy as np
import oracle
import pytest
import torch
from layers import DTYPES, RKV, ROUTE, add_pages, make, positions, read, scores_by_head, step
from test_score import KINDS

pytestmark = pytest.mark.core

HEADS, GROUP, DIM, WINDOW = 2, 2, 24, 4
SCALE = 1 / np.sqrt(np.float32(DIM))


def scores(layer, row):
    return scores_by_head(layer, row, RKV, HEADS, WINDOW)


def queries(layer, row):
    count, raw = layer.queries(row)
    return np.frombuffer(raw, np.float32).reshape(HEADS * GROUP, count, DIM)


def check_scores(layer, scale=SCALE):
    """Against the definition, from the keys and queries that the layer holds; returns how many heads were compared.

    scale: of the logits in the newest step, which scores use too.
    """
    compared = 0
    for row in range(layer.rows):
        held = queries(layer, row)
        for head, got in enumerate(scores(layer, row)):
            keys = read(layer, row, head, DIM, False)
            if held.shape[1] < WINDOW or oracle.redundancy_margin(keys) < 1e-5:
                continue
            want = oracle.rkv(held[head * GROUP : (head + 1) * GROUP] * (scale / SCALE), keys)
            np.testing.assert_allclose(got, want, atol=2e-6)
            compared += 1
    return compared


def lost_mass(layer, before, row, head, scale):
    """Mean over the group of the newest query's attention on the positions that went."""
    keys, old = before[row, head]
    q = queries(layer, row)[head * GROUP : (head + 1) * GROUP, -1]
    mass = oracle.softmax(q.astype(np.float64) @ keys.T.astype(np.float64) * scale).mean(0)
    return mass[~np.isin(old, positions(layer, row, head))].sum()


def cut(pool, layer, total, protect=0, scale=SCALE):
    """Compresses every row to `total` slots; the lost mass is that of the definition."""
    rows = layer.rows
    before = {
        (r, h): (read(layer, r, h, DIM, False), positions(layer, r, h).copy())
        for r in range(rows)
        for h in range(HEADS)
    }
    lost, flags = np.zeros((rows, HEADS)), np.zeros(rows, np.bool_)
    arguments = (
        np.full(rows, total),
        np.full(rows, protect),
        RKV,
        ROUTE,
        np.zeros((rows, HEADS), np.int64),
        lost,
        flags,
    )
    while missing := layer.cut(*arguments):
        add_pages(pool, missing)
    for row in np.flatnonzero(flags):
        for head in range(HEADS):
            assert lost[row, head] == pytest.approx(lost_mass(layer, before, row, head, scale), abs=1e-5)


def new_tokens(random, kind, count, rows, dtype):
    keys = np.stack([[KINDS[kind](count, DIM, random) for _ in range(HEADS)] for _ in range(rows)])
    q = random.standard_normal((rows, HEADS * GROUP, count, DIM)) * 2
    values = random.standard_normal((rows, HEADS, count, DIM))
    return [torch.tensor(x, dtype=torch.float32).to(DTYPES[dtype]) for x in (q, keys, values)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_after_many_cuts(isa, kind, dtype):
    random = np.random.default_rng(5)
    pool, layer = make(dtype, rows=2, heads=HEADS, group=GROUP, dim=DIM, window=WINDOW)
    compared = 0
    for turn in range(12):
        count = int(random.integers(1, 40)) if turn else 300  # more than the sweep's queries at first
        step(pool, layer, *new_tokens(random, kind, count, 2, dtype), scale=SCALE, attend=False)
        compared += check_scores(layer)
        cut(pool, layer, int(random.integers(2 * HEADS * WINDOW, 90)), protect=int(random.integers(0, 3)))
        if turn % 3 == 0:
            compared += check_scores(layer)  # nothing new since the cut: only what lost its newest similar key
    assert compared > 10 or kind == "odd_keys"


@pytest.mark.parametrize("trusty", [True, False])
def test_what_attention_leaves_behind(isa, trusty):
    """A count-down to the cut, right or (by a caller's mistake) wrong, gives the same scores."""
    random = np.random.default_rng(6)
    pool, layer = make(rows=2, heads=HEADS, group=GROUP, dim=DIM, window=WINDOW)
    step(pool, layer, *new_tokens(random, "walking_keys", 50, 2, "float32"), attend=False)
    interval, compared = 11, 0
    for _ in range(6):
        for since in range(interval):
            q, k, v = new_tokens(random, "walking_keys", 1, 2, "float32")
            cut_in = interval - 1 - since if trusty else int(random.integers(-2, WINDOW + 2))
            real = None if trusty or random.random() < 0.7 else torch.tensor([[True], [False]])
            step(pool, layer, q, k, v, real, SCALE, cut_in=cut_in)
        compared += check_scores(layer)
        cut(pool, layer, 60)
    assert compared > 10


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_scores_use_the_logits_of_the_model(softcap):
    """Its own scale and soft-capping, whether attention left its logits behind or they are computed at the cut."""
    random = np.random.default_rng(7)
    scale, gathered, computed = 0.9, [], []
    for announced, found in ((True, gathered), (False, computed)):
        random = np.random.default_rng(7)
        pool, layer = make(rows=1, heads=HEADS, group=GROUP, dim=DIM, window=WINDOW)
        step(pool, layer, *new_tokens(random, "walking_keys", 50, 1, "float32"), scale=scale, attend=False)
        for left in range(WINDOW - 1, -1, -1):
            q, k, v = new_tokens(random, "walking_keys", 1, 1, "float32")
            add_pages(pool, 8)
            out, cut_in = torch.empty(1, 1, HEADS * GROUP, DIM), np.array([left if announced else -1])
            layer.step(q, k, v, out, scale, cut_in, None, None, softcap)
        if not softcap:
            assert check_scores(layer, scale)
        found += scores(layer, 0)
        cut_scores = ("importance", 0.1, 0.5, 1, 0)
        flat = np.empty(HEADS * 50, np.float32)
        layers.scores(layer, 0, cut_scores, flat)
        for head, got in enumerate(np.split(flat, HEADS)):
            logits = scale * queries(layer, 0)[head * GROUP : (head + 1) * GROUP].astype(np.float64)
            logits = (logits @ read(layer, 0, head, DIM, False).T)[..., :50]
            logits = softcap * np.tanh(logits / softcap) if softcap else logits
            np.testing.assert_allclose(got, oracle.softmax(logits.max(0)).mean(0), atol=2e-6)
        if not softcap:
            cut(pool, layer, 60, scale=scale)
    for one, other in zip(gathered, computed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_crop_and_reorder_forget_what_no_longer_holds():
    random = np.random.default_rng(8)
    pool, layer = make(rows=2, heads=HEADS, group=GROUP, dim=DIM, window=WINDOW)
    for turn in range(8):
        step(pool, layer, *new_tokens(random, "repeating_keys", 40, layer.rows, "float32"), attend=False)
        assert check_scores(layer)
        if turn % 2:
            layer.reorder(np.array([1, 0, 1][: 2 + turn % 3 // 2]))
        else:
            layer.crop(int(random.integers(1, 30)))
        step(pool, layer, *new_tokens(random, "repeating_keys", WINDOW, layer.rows, "float32"), attend=False)
        assert check_scores(layer)
        cut(pool, layer, 70)


def test_the_sum_of_unit_keys_does_not_drift():
    """A head that is cut a thousand times scores like one that was filled at once."""
    random = np.random.default_rng(9)
    pool, layer = make(rows=1, heads=1, group=1, dim=DIM, window=WINDOW)
    budgets, lost = np.zeros((1, 1), np.int64), np.zeros((1, 1))
    for _ in range(1000):
        q, k, v = (torch.from_numpy(random.standard_normal((1, 1, 3, DIM)).astype(np.float32)) for _ in range(3))
        step(pool, layer, q, k + 1, v, attend=False)
        while missing := layer.cut(np.array([60]), np.array([0]), RKV, ROUTE, budgets, lost, np.zeros(1, np.bool_)):
            add_pages(pool, missing)
    got = np.empty(60 - WINDOW, np.float32)
    layers.scores(layer, 0, RKV, got)
    other_pool, other = make(rows=1, heads=1, group=1, dim=DIM, window=WINDOW)
    keys = torch.from_numpy(read(layer, 0, 0, DIM, False))[None, None]
    held = torch.zeros(1, 1, 60, DIM)
    held[:, :, -WINDOW:] = torch.frombuffer(bytearray(layer.queries(0)[1]), dtype=torch.float32).view(1, 1, WINDOW, DIM)
    step(other_pool, other, held, keys, keys, attend=False)
    want = np.empty(60 - WINDOW, np.float32)
    layers.scores(other, 0, RKV, want)
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_long_heads_are_attended_in_chunks(isa):
    """Whole heads, chunks and what is between give the attention of the definition."""
    random = np.random.default_rng(10)
    for n in (255, 256, 257, 511, 513, 800):
        pool, layer = make(rows=1, heads=HEADS, group=GROUP, dim=DIM, window=WINDOW)
        q, k, v = new_tokens(random, "random_keys", n, 1, "float32")
        step(pool, layer, q, k, v, attend=False)
        q, more_k, more_v = new_tokens(random, "random_keys", 1, 1, "float32")
        out = step(pool, layer, q, more_k, more_v, scale=float(SCALE))
        all_k, all_v = torch.cat([k, more_k], 2)[0].numpy(), torch.cat([v, more_v], 2)[0].numpy()
        np.testing.assert_allclose(out[0].numpy(), oracle.attend(q[0].numpy(), all_k, all_v, SCALE), atol=2e-5)


def test_threads_change_nothing():
    """Bit for bit the same output and scores with one thread and with two."""
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            random = np.random.default_rng(11)
            pool, layer = make(rows=2, heads=HEADS, group=GROUP, dim=DIM, window=WINDOW)
            step(pool, layer, *new_tokens(random, "walking_keys", 1500, 2, "float32"), attend=False)
            out = step(pool, layer, *new_tokens(random, "walking_keys", 1, 2, "float32"), scale=float(SCALE))
            results.append((out, [s.tobytes() for row in range(2) for s in scores(layer, row)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
