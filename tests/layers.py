"""Pools and layers of the C core for tests: made, fed and read."""

import numpy as np
import torch

from reasonalloc import _core

PAGE = _core.PAGE_TOKENS
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {"float32": 2e-5, "bfloat16": 8e-3, "float16": 1e-3}  # of outputs of about 1: half a step of the dtype
RKV = ("rkv", 0.1, 0.5, 7, 0)
ROUTE = (1, 0.5, 0.25, 2.0, 0.25, 0.2)


def add_pages(pool, pages):
    pool.add_slab(torch.full((pages * pool.page_bytes,), 255, dtype=torch.uint8))  # NaN: nothing may rely on zeros


def pages_for(n):
    return -(-n // PAGE)


def set_centres(layer, query_heads, dim, seed=0):
    """Gives a layer for "triattention" some distribution of its queries."""
    random, pairs = np.random.default_rng(seed), dim // 2
    mean = random.standard_normal((query_heads, dim)).astype(np.float32)
    length = random.uniform(1, 4, (query_heads, pairs)).astype(np.float32)
    layer.set_centres(10000.0 ** (-np.arange(pairs) / pairs), mean, length)


def make(dtype="float32", rows=2, heads=2, group=2, dim=16, window=4, scorer="rkv"):
    pool = _core.Pool(dtype, dim)
    layer = _core.Layer(pool, rows, heads, heads * group, window, scorer)
    if scorer == "triattention":
        set_centres(layer, heads * group, dim)
    return pool, layer


def tokens(layer_shape, count, dtype="float32", seed=0, scale=1.0):
    """Random queries, keys, values for (rows, heads, group, dim)."""
    rows, heads, group, dim = layer_shape
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (torch.randn(rows, h, count, dim, generator=generator) * scale).to(DTYPES[dtype])
        for h in (heads * group, heads, heads)
    )


def packed(real):
    """(begin, index) of the tokens that a mask [B, T] calls real; (None, None) for no mask."""
    if real is None:
        return None, None
    flags = real.numpy()
    begin = np.zeros(len(flags) + 1, np.int64)
    np.cumsum(flags.sum(1), out=begin[1:])
    return begin, np.nonzero(flags)[1].astype(np.int64)


def step(pool, layer, q, k, v, real=None, scale=None, attend=True, cut_in=None):
    """layer.step with as many pages as it asks for; returns the output, zeros for padding."""
    out = torch.full((q.shape[0], q.shape[2], q.shape[1], q.shape[3]), float("nan"), dtype=q.dtype) if attend else None
    if attend and real is not None:
        out[~real] = 0
    begin, index = packed(real)
    cut_in = np.full(layer.rows, cut_in) if isinstance(cut_in, int) else cut_in
    before = snapshot(layer)
    scale = k.shape[3] ** -0.5 if scale is None else float(scale)
    while missing := layer.step(q, k, v, out, scale, cut_in, begin, index):
        assert_same(snapshot(layer), before)
        assert missing > 0
        add_pages(pool, missing)
    return out


def only(layer, row, value):
    """[rows] int64: -1 but for one row; IndexError if there is none of that number."""
    totals = np.full(layer.rows, -1)
    totals[range(layer.rows)[row] if row >= 0 else layer.rows] = value
    return totals


def scores(layer, row, config, out, total=0, protect=0):
    """Scores of a row's older tokens, head after head, at a cut to `total` slots."""
    totals = only(layer, row, total)
    layer.cut_score(totals, config, np.zeros(layer.rows, np.bool_), only(layer, row, protect))
    layer.cut_scores(row, out)
    layer.cut_abandon()


def scores_by_head(layer, row, config, heads, window):
    """The same, an array a head."""
    older = np.maximum(slots(layer, heads)[row] - window, 0)
    out = np.full(int(older.sum()), np.nan, np.float32)
    scores(layer, row, config, out)
    return np.split(out, np.cumsum(older)[:-1])


def slots(layer, heads):
    out = np.zeros((layer.rows, heads), np.int64)
    layer.slots(out)
    return out


def positions(layer, row, head):
    return np.frombuffer(layer.positions(row, head), np.int32)


def read(layer, row, head, dim, values):
    out = np.full((len(positions(layer, row, head)), dim), np.nan, np.float32)
    layer.read(row, head, values, out)
    return out


def heads_of(layer):
    head = 0
    while True:
        try:
            layer.positions(0, head)
        except IndexError:
            return head
        head += 1


def snapshot(layer):
    """Everything that a layer shows."""
    heads = heads_of(layer)
    held = [layer.positions(r, h) for r in range(layer.rows) for h in range(heads)]
    return held, [layer.tokens(r) for r in range(layer.rows)], [layer.queries(r) for r in range(layer.rows)]


def assert_same(given, expected):
    assert given == expected


def evict_once(layer, row, budgets, flat, protect, lost):
    """Cuts one row by scores of one's own; pages that are missing, or 0."""
    totals = only(layer, row, 0)
    everything, losses = np.zeros((layer.rows, len(budgets)), np.int64), np.zeros((layer.rows, len(budgets)))
    everything[row] = budgets
    begun = np.zeros(layer.rows, np.bool_)
    layer.cut_score(totals, None, begun)
    if not begun[row]:  # it is empty
        return 0
    layer.cut_set_scores(row, flat)
    layer.cut_choose(np.full(layer.rows, protect), everything, losses)
    missing = layer.cut_apply()
    lost[:] = losses[row]
    return missing


def evict(pool, layer, row, budgets, scores, protect=0):
    budgets = np.asarray(budgets, np.int64)
    lost = np.zeros(len(budgets))
    flat = np.concatenate([np.asarray(s, np.float32) for s in scores]) if len(scores) else np.zeros(0, np.float32)
    while missing := evict_once(layer, row, budgets, flat, protect, lost):
        add_pages(pool, missing)
    return lost


def cut(pool, layer, heads, totals, protect=None, score=RKV, route=ROUTE):
    totals = np.asarray(totals, np.int64)
    protect = np.zeros(len(totals), np.int64) if protect is None else np.asarray(protect, np.int64)
    budgets, lost = np.full((len(totals), heads), -7, np.int64), np.full((len(totals), heads), np.nan)
    flags = np.zeros(len(totals), np.bool_)
    while missing := layer.cut(totals, protect, score, route, budgets, lost, flags):
        add_pages(pool, missing)
    return budgets, lost, flags
