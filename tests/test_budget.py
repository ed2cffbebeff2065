"""Slots, pages and bytes stay inside what was promised, at every step."""

import gc

import caches
import models
import numpy as np
import psutil
import pytest
import torch

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.profile import measure
from reasonalloc.policy.view import RowView
from reasonalloc.store.pages import PAGE_TOKENS

METHODS = caches.BUDGETED


def cache_of(model, **options):
    return ra.ReasonAllocCache(model, ra.Config(**options))


def interval_of(cache):
    return cache.policy.schedule.interval


def check_pages(cache):
    """Bytes are those of the pages that the slots need, no more."""
    figures = cache.stats()
    slots = np.array(figures["slots"])
    pages = -(-slots // PAGE_TOKENS)
    assert figures["bytes"] == int(pages.sum()) * cache.pool.core.page_bytes
    assert figures["bytes"] <= figures["peak_bytes"]
    assert figures["bytes"] <= figures["reserved_bytes"]
    for layer in figures["layers"]:
        for row in range(len(slots)):
            assert [len(p) for p in cache.positions(layer, row)] == figures["slots"][row][
                figures["layers"].index(layer)
            ]
    return figures


def run(model, cache, prompt=60, new=40, rows=1, check=None):
    """A prompt and single steps; `check(figures, cut)` after each."""
    cuts = 0
    for i in range(new + 1):
        before = cache.stats()["routings"]
        models.step(model, cache, models.prompt(prompt if i == 0 else 1, rows=rows, seed=i))
        figures = check_pages(cache)
        if check:
            check(figures, figures["routings"] > before)
        cuts += figures["routings"] > before
    return cuts


# ---- After every cut -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_slots_are_the_budgets(method):
    model = models.tiny()
    options = {} if method == "streaming" else {"interval": 8}
    cache = cache_of(model, method=method, budget=24, window=4, **options)
    total = 24 * 2 * 3

    def check(figures, cut):
        slots, budgets = np.array(figures["slots"]), np.array(figures["budgets"])
        if cut:
            assert budgets.sum((1, 2)).tolist() == [total, total]
            # a head is at its budget, or below it where it never held as many
            assert (slots <= budgets).all()
            held = np.array([[[len(p) for p in cache.positions(i, r)] for i in range(3)] for r in range(2)])
            assert np.array_equal(slots, held)
            full = figures["steps"] + 59
            assert (slots[slots < budgets] >= 4).all()
            assert slots.sum() >= total * 0.5
            assert (slots <= full).all()
        assert slots.sum() <= 2 * (total + interval_of(cache) * 6)
        assert (slots >= 4).all()

    assert run(model, cache, rows=2, check=check) >= 5
    assert cache.stats()["evicted"] == 2 * 6 * 100 - np.array(cache.stats()["slots"]).sum()


def test_budgets_of_each_part():
    """Layers by the wave, heads by routing: each sum is exact."""
    model = models.tiny("llama-mha")
    wave = ra.WaveProfile((40.0, 10.0, 20.0), (0, 1, 2), fingerprint(model))
    cache = cache_of(model, method="reasonalloc", budget=32, interval=8, window=4, profile=wave)
    shares = ra.allocate.robustify(wave.demand, 32 * 4 * 3, floor=16)

    def check(figures, cut):
        if cut:
            budgets = np.array(figures["budgets"])[0]
            assert budgets.sum(1).tolist() == shares.tolist()
            assert budgets.min() >= 4
            assert (budgets.min(1) >= shares / 4 * 0.25 - 1).all()
            assert (np.array(figures["slots"])[0] == budgets).all()

    assert run(model, cache, prompt=150, check=check) == 6
    assert cache.stats()["wave"] == "profile"


def test_slots_follow_the_wave():
    model = models.tiny()
    for demand in ((90.0, 10.0, 40.0), (10.0, 90.0, 40.0)):
        wave = ra.WaveProfile(demand, (0, 1, 2), fingerprint(model))
        for method in ("reasonalloc", "reasonalloc-wave"):
            cache = cache_of(model, method=method, budget=32, window=4, profile=wave)
            models.step(model, cache, models.prompt(200))
            slots = np.array(cache.stats()["slots"])[0].sum(1)
            assert np.argsort(slots).tolist() == np.argsort(demand).tolist()
            roots = np.sqrt(demand)
            assert np.abs(slots - slots.sum() * roots / roots.sum()).max() <= 2


def test_the_wave_is_measured_where_none_is_given():
    model = models.tiny()
    text = models.prompt(120)
    demand = measure(model, text)
    ra.uninstall(model)
    cache = cache_of(model, method="reasonalloc", budget=32, window=4)
    models.step(model, cache, text)
    assert cache.stats()["wave"] == "measured on the first prefill"
    shares = ra.allocate.robustify(list(demand.values()), 32 * 6, floor=8)
    assert np.array(cache.stats()["budgets"])[0].sum(1).tolist() == shares.tolist()
    profile = ra.WaveProfile(tuple(demand.values()), tuple(demand), fingerprint(model))
    given = cache_of(model, method="reasonalloc", budget=32, window=4, profile=profile)
    models.step(model, given, text)
    for layer in range(3):
        for a, b in zip(cache.positions(layer), given.positions(layer), strict=True):
            assert np.array_equal(a, b)
    for method in ("rkv", "reasonalloc-route", "streaming"):
        other = cache_of(model, method=method, budget=32, window=4)
        models.step(model, other, text)
        assert other.stats()["wave"] == "none"


def test_a_prompt_of_one_token_has_a_wave_too():
    """Whatever it is measured as, the figures say where it comes from and the cuts go on."""
    model = models.tiny()
    cache = cache_of(model, method="reasonalloc", budget=16, interval=8, window=4)
    run(model, cache, prompt=1, new=60)
    assert cache.stats()["evicted"] > 0
    assert cache.stats()["wave"] == "measured on the first prefill, too short in rows [0]: uniform there"


def test_pyramids_fall_with_depth():
    model = models.build("llama", num_hidden_layers=5)
    cache = cache_of(model, method="pyramid-rkv", budget=40, window=4)
    models.step(model, cache, models.prompt(200))
    layers = np.array(cache.stats()["slots"])[0].sum(1)
    assert (np.diff(layers) < 0).all()
    assert layers.sum() == 40 * 2 * 5


# ---- Between the cuts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["reasonalloc", "rkv", "streaming", "pyramidkv"])
@pytest.mark.parametrize("interval", [1, 7, 32])
def test_never_more_than_budget_and_interval(method, interval):
    model = models.tiny()
    cache = cache_of(model, method=method, budget=20, window=4, interval=interval)

    def check(figures, cut):
        assert np.array(figures["slots"]).mean() <= 20 + interval
        if cut:
            assert np.array(figures["slots"]).mean() <= 20

    assert run(model, cache, check=check)


def test_steps_of_several_tokens_are_cut_too():
    model = models.tiny()
    cache = cache_of(model, method="rkv", budget=20, window=4, interval=8)
    for i, tokens in enumerate((5, 3, 9, 30, 2, 2, 2, 2, 50, 1)):
        models.step(model, cache, models.prompt(tokens, seed=i))
        mean = np.array(check_pages(cache)["slots"]).mean()
        assert mean <= 20 + 7
        if tokens >= 8 and i > 2:
            assert mean == 20


def test_a_prompt_below_the_budget_is_not_cut():
    model = models.tiny()
    cache = cache_of(model, method="rkv", budget=100, window=4, interval=8)
    assert run(model, cache, prompt=50, new=45) == 0
    assert cache.stats()["evicted"] == 0
    assert cache.stats()["ratio"] == 1.0
    assert cache.stats()["lost_mass"] == 0.0


@pytest.mark.parametrize("method", ["reasonalloc", "rkv", "adakv", "streaming"])
@pytest.mark.parametrize("rows", [1, 3])
def test_max_bytes_is_never_exceeded(method, rows):
    model = models.tiny()
    page = 2 * 16 * 8 * 4
    limit = rows * 6 * 5 * page  # five pages for each head
    interval = 1 if method == "streaming" else 16
    cache = cache_of(model, method=method, max_bytes=limit, window=4, interval=interval)

    def check(figures, cut):
        assert figures["bytes"] <= limit

    run(model, cache, rows=rows, prompt=150, new=50, check=check)
    assert cache.stats()["bytes"] > limit / 2  # and it is made use of
    assert cache.stats()["evicted"]


def test_max_bytes_in_words():
    model = models.tiny()
    for text, number in (("60KiB", 60 * 1024), ("0.06 MB", 60_000), ("61440B", 61440), (61440, 61440)):
        cache = cache_of(model, method="rkv", max_bytes=text, window=4, interval=16)
        models.step(model, cache, models.prompt(400))
        assert number / 2 < cache.stats()["bytes"] <= number


@pytest.mark.parametrize("method", ["rkv", "reasonalloc", "streaming"])
def test_max_bytes_holds_when_rows_multiply(method):
    """Rows that fork share pages at first; as they go on each needs its own."""
    model, limit = models.tiny(), 200 * 2**10
    cache = cache_of(model, method=method, max_bytes=limit, window=4, interval=8)
    models.step(model, cache, models.prompt(400))
    alone = cache.stats()
    cache.batch_repeat_interleave(8)
    assert cache.stats()["bytes"] <= limit
    for i in range(40):
        models.step(model, cache, models.prompt(1, rows=8, seed=i))
        assert cache.stats()["bytes"] <= limit
    forked = cache.stats()
    assert np.array(forked["slots"]).mean() < np.array(alone["slots"]).mean() / 4
    fresh = cache_of(model, method=method, max_bytes=limit, window=4, interval=8)
    models.step(model, fresh, models.prompt(400, rows=8))
    assert (
        np.array(forked["budgets"]).sum() == np.array(fresh.stats()["budgets"]).sum()
    )  # as had there been 8 from the start
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert cache.cutter.budgets.fitting(2) == fresh.cutter.budgets.fitting(
        8
    )  # fewer rows: what is left goes on as it was


def test_more_rows_than_max_bytes_has_room_for():
    model = models.tiny()
    cache = cache_of(model, method="rkv", max_bytes="100KiB", window=4, interval=8)
    models.step(model, cache, models.prompt(100))
    before = cache.stats()
    with pytest.raises(ValueError, match=r"max_bytes='100KiB' leaves no room.*: 64 rows x 3 layers x 2 heads need"):
        cache.batch_repeat_interleave(64)
    after = cache.stats()
    assert (after["slots"], after["bytes"], after["closed"]) == (before["slots"], before["bytes"], None)
    models.step(model, cache, models.prompt(1))


def test_crop_after_rows_multiplied():
    """What went when they did does not come back."""
    model = models.tiny()
    cache = cache_of(model, method="rkv", max_bytes="100KiB", window=4, interval=8)
    models.step(model, cache, models.prompt(100))
    for i in range(3):
        models.step(model, cache, models.prompt(1, seed=i))
    cache.batch_repeat_interleave(4)
    with pytest.raises(ValueError, match="cannot crop 1 of 103 tokens: only the newest 0"):
        cache.crop(-1)


@pytest.mark.parametrize("method", ["rkv", "adakv"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_ratio_is_a_share_of_what_was_seen(method, ratio):
    model = models.tiny()
    cache = cache_of(model, method=method, ratio=ratio, window=4, interval=10)

    def check(figures, cut):
        if cut:
            seen = figures["steps"] + 79
            expected = int(ratio * seen)
            assert np.array(figures["slots"]).mean() == expected
            assert figures["ratio"] == pytest.approx(expected / seen)

    cuts = run(model, cache, prompt=80, new=50, check=check)
    assert cuts == (0 if ratio == 1.0 else 6)


def test_ratio_with_uneven_layers():
    """Layers whose share is above what they hold leave some of it: never more than the ratio is kept."""
    model = models.tiny()
    for ratio in (0.3, 0.9):
        cache = cache_of(model, method="reasonalloc", ratio=ratio, window=4, interval=10)

        def check(figures, cut, ratio=ratio):
            if cut:
                assert np.array(figures["slots"]).mean() <= int(ratio * (figures["steps"] + 79))
                assert figures["ratio"] <= ratio

        assert run(model, cache, prompt=80, new=30, check=check) == 4


def test_small_ratios_keep_two_windows():
    model = models.tiny()
    cache = cache_of(model, method="rkv", ratio=0.01, window=4, interval=10)
    models.step(model, cache, models.prompt(100))
    assert np.array(cache.stats()["slots"]).mean() == 8


# ---- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rkv", "reasonalloc"])
def test_memory_of_a_long_prompt_is_given_back(method):
    model = models.tiny("llama-wide")
    cache = cache_of(model, method=method, budget=32, window=4, interval=16)
    full = cache_of(model, method="full")
    models.step(model, full, models.prompt(3000))
    models.step(model, cache, models.prompt(3000))
    before, now = full.stats(), cache.stats()
    assert now["bytes"] < before["bytes"] / 50
    # one slab may stay: at most the prompt of one layer, or a slab's least size
    assert now["reserved_bytes"] <= max(before["bytes"] / 3, 2**20)
    if method == "rkv":  # no wave to be measured first: one layer at a time is whole
        assert now["peak_bytes"] < before["bytes"] / 2
    assert np.array(now["slots"]).sum() == 96


def test_reset_sends_all_pages_home():
    model = models.tiny()
    cache = cache_of(model, method="rkv", budget=32, window=4, interval=8)
    run(model, cache, rows=3)
    cache.batch_repeat_interleave(2)
    pool = cache.pool
    assert pool.used
    cache.reset()
    assert pool.used == 0
    assert cache.stats()["bytes"] == cache.stats()["reserved_bytes"] == 0


def test_a_cache_that_goes_frees_its_memory():
    model = models.tiny()
    cache = cache_of(model, method="full")
    models.step(model, cache, models.prompt(200))
    pool = cache.pool
    assert pool.used
    del cache
    gc.collect()
    assert pool.used == 0


def test_beams_share_and_free_pages():
    model = models.tiny()
    cache = cache_of(model, method="reasonalloc", budget=24, window=4, interval=8)
    model.generate(
        models.prompt(40, rows=2),
        attention_mask=torch.ones(2, 40, dtype=torch.long),
        num_beams=4,
        max_new_tokens=40,
        **cache_argument(cache),
        do_sample=False,
    )
    figures = cache.stats()
    slots = np.array(figures["slots"])
    assert slots.shape == (8, 3, 2)
    assert figures["bytes"] <= int((-(-slots // PAGE_TOKENS)).sum()) * cache.pool.core.page_bytes
    assert slots.mean() <= 24 + 8
    pool = cache.pool
    cache.reset()
    assert pool.used == 0


def test_the_process_does_not_grow():
    model = models.tiny("llama-wide")
    process = psutil.Process()

    def use():
        cache = cache_of(model, method="reasonalloc", budget=64, interval=16, window=8)
        model.generate(
            models.prompt(300, rows=2),
            attention_mask=torch.ones(2, 300, dtype=torch.long),
            max_new_tokens=20,
            **cache_argument(cache),
            do_sample=False,
        )
        cache.reset()

    for _ in range(5):
        use()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(20):
        use()
    gc.collect()
    assert process.memory_info().rss - before < 12 * 2**20  # one cache's pages are 3 MiB


# ---- Figures ---------------------------------------------------------------------------------------------------------


def test_figures_of_a_run():
    model = models.tiny()
    cache = cache_of(model, method="reasonalloc", budget=24, interval=8, window=4)
    empty = cache.stats()
    assert (empty["bytes"], empty["slots"], empty["budgets"], empty["steps"], empty["evicted"]) == (0, [], [], 0, 0)
    sizes = []
    run(model, cache, prompt=50, new=20, check=lambda figures, _: sizes.append(figures["bytes"]))
    figures = cache.stats()
    assert figures["steps"] == 21
    assert figures["routings"] == 3  # the prompt, then every 8 tokens
    assert figures["mean_bytes"] == pytest.approx(np.mean(sizes))
    assert figures["peak_bytes"] >= max(sizes)
    assert set(figures["seconds"]) >= {"score", "route", "evict", "attend"}
    assert all(0 < s < 60 for s in figures["seconds"].values())
    assert 0 < figures["lost_mass"] < 1
    assert figures["ratio"] == np.array(figures["slots"]).sum() / (70 * 6)
    assert figures["method"] == "reasonalloc"
    assert figures["layers"] == [0, 1, 2]
    assert figures["other_bytes"] == 0


def test_sliding_layers_are_counted_apart():
    model = models.tiny("gemma3")
    cache = cache_of(model, method="rkv", budget=24, interval=8, window=4)
    models.step(model, cache, models.prompt(50))
    figures = cache.stats()
    assert figures["layers"] == [2, 5]
    assert np.array(figures["slots"]).shape == (1, 2, 2)
    assert figures["other_bytes"] == 4 * 2 * 2 * 7 * 16 * 4  # 4 layers, K and V, 2 heads, 7 tokens of 16 floats


def test_an_unlimited_cache():
    model = models.tiny()
    cache = cache_of(model, method="full")
    run(model, cache, prompt=40, new=30)
    figures = cache.stats()
    assert figures["budgets"] == [[[-1, -1]] * 3]
    assert figures["ratio"] == 1.0
    assert figures["routings"] == figures["evicted"] == 0


def test_intervals_that_never_end():
    """No memory is asked for beforehand for tokens that may never come."""
    model = models.tiny()
    cache = cache_of(model, method="rkv", budget=24, interval=2**31 - 1, window=4)
    run(model, cache, prompt=40, new=30)
    assert cache.stats()["routings"] == 1
    assert np.array(cache.stats()["slots"]).mean() == 24 + 30


# ---- A prompt that the wave spares -----------------------------------------------------------------------------------


def test_spared_prompts():
    part = ra.Config(method="reasonalloc-wave", budget=48, options={"spare_prompt": True}).policy().layers
    claims, view = np.array([100.0, 1, 25]), RowView(0, 500, 2, 4, protected=20)
    totals = np.asarray(part.totals(claims, 3 * 2 * 48, view))
    rest = ra.allocate.robustify(claims, 3 * 2 * (48 - 24), 0.5, 0.25, 2.0)
    assert totals.tolist() == (48 + rest).tolist() and totals.sum() == 288 and totals.min() > 48
    tight = np.asarray(part.totals(claims, 3 * 2 * 23, view))  # not even the prompts fit: as without
    assert tight.tolist() == ra.allocate.robustify(claims, 138, 0.5, 0.25, 2.0, 8).tolist()
    none = np.asarray(part.totals(claims, 288, RowView(0, 500, 2, 4)))
    assert none.sum() == 288 and none.min() >= 8


def test_each_row_spares_its_own_prompt():
    model = models.tiny()
    demand = tuple(float(x) for x in range(10, 10 + 40 * len(model.model.layers), 40))
    wave = ra.WaveProfile(demand, tuple(range(len(demand))), fingerprint(model))
    common = {"method": "reasonalloc-wave", "budget": 40, "interval": 8, "window": 4, "profile": wave}
    for keep in (True, False):
        options = {"keep_prompt": keep, "options": {"spare_prompt": True}}
        rows = [models.prompt(n, seed=n)[0] for n in (12, 30)]
        cache = cache_of(model, **common, **options)
        ids, mask = models.left_padded(rows)
        steps = [models.prompt(1, rows=2, seed=i) for i in range(40)]
        with torch.no_grad():
            model(ids, attention_mask=mask, **cache_argument(cache))
            for x in steps:
                mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
                model(x, attention_mask=mask, **cache_argument(cache))
        heads, least = model.config.num_key_value_heads, []
        for row, n in enumerate((12, 30)):
            spared = (n if keep else 0) + 4
            totals = np.array(cache.stats()["budgets"][row]).sum(-1)
            rest = ra.allocate.robustify(demand, len(demand) * heads * (40 - spared), 0.5, 0.25, 2.0)
            assert totals.tolist() == (heads * spared + rest).tolist()
            least.append(totals.min())
            alone = cache_of(model, **common, **options)
            with torch.no_grad():
                model(rows[row][None], **cache_argument(alone))
                for x in steps:
                    model(x[row : row + 1], **cache_argument(alone))
            for layer in range(len(demand)):
                assert [p.tolist() for p in alone.positions(layer, 0)] == [
                    p.tolist() for p in cache.positions(layer, row)
                ]
        assert (least[1] > least[0]) == keep
