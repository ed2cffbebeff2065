"""A cache whose lists are a device's: the CUDA backend on its emulation. What it keeps is what the CPU's keeps."""

import caches
import models
import numpy as np
import pytest
import torch
from caches import cache_of, contents
from layers import RKV, ROUTE, positions, slots
from transformers import DynamicCache

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.hf.compat import cache_argument
from reasonalloc.policy.gates import write_gates
from reasonalloc.store import backends

emulated = pytest.importorskip("reasonalloc._cuda_emulated")
pytestmark = pytest.mark.core
HEADS, GROUP, DIM, WINDOW = 2, 2, 16, 4


@pytest.fixture
def on_device(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")


def made(rows=2, scorer="rkv"):
    pool = _core.Pool("float32", DIM, emulated.backend)
    return pool, _core.Layer(pool, rows, HEADS, HEADS * GROUP, WINDOW, scorer, 64)


def tokens(random, rows, count):
    return [torch.from_numpy(random.standard_normal((rows, h, count, DIM)).astype(np.float32)) for h in (4, 2, 2)]


def step(pool, layer, random, count=1, attend=True):
    q, k, v = tokens(random, layer.rows, count)
    out = torch.empty(layer.rows, count, HEADS * GROUP, DIM) if attend else None
    while missing := layer.step(q, k, v, out, 0.25):
        pool.add_slab(torch.full((missing * pool.page_bytes,), 255, dtype=torch.uint8))
    return out


def results(layer):
    shape = (layer.rows, HEADS)
    return np.zeros(shape, np.int64), np.zeros(shape), np.zeros(layer.rows, np.bool_)


# ---- Layers ----


@pytest.mark.parametrize("scorer", ["rkv", "h2o", "lazy"])
def test_steps_and_cuts_do_not_wait_and_allocate_nothing(scorer):
    pool, layer = made(scorer=scorer)
    random, totals, protect = np.random.default_rng(0), np.full(2, 60), np.zeros(2, np.int64)
    pool.add_slab(torch.full((64 * pool.page_bytes,), 255, dtype=torch.uint8))
    for turn in range(120):
        if turn == 80:
            before = emulated.waits(), emulated.allocations(), _core.allocations()
        step(pool, layer, random)
        if turn % 8 == 7:
            assert layer.cut(totals, protect, (scorer, *RKV[1:]), ROUTE, None, None, None) == 0
    assert (emulated.waits(), emulated.allocations(), _core.allocations()) == before
    assert slots(layer, HEADS).sum(1).tolist() == [60, 60]  # this waits
    assert emulated.waits() > before[0]


def test_figures_come_later():
    random = np.random.default_rng(1)
    pool, layer = made()
    with pytest.raises(ValueError, match="not cut yet"):
        budgets, lost, flags = results(layer)
        layer.figures(flags, budgets, budgets, budgets, lost)
    step(pool, layer, random, 50)
    twin = layer.copy()
    totals, protect = np.array([60, -1]), np.array([3, 0])
    expected = results(layer)
    for layer_, wanted in ((twin, expected), (layer, (None, None, None))):
        while missing := layer_.cut(totals, protect, RKV, ROUTE, *wanted):  # their pages are shared
            pool.add_slab(torch.full((missing * pool.page_bytes,), 255, dtype=torch.uint8))
    step(pool, layer, random)  # the figures are those of the cut
    (budgets, lost, flags), before, after = results(layer), np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64)
    layer.figures(flags, before, after, budgets, lost)
    for got, want in zip((budgets, lost, flags), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert before.tolist() == [[50, 50]] * 2
    assert after[1].tolist() == [50, 50] and after[0].sum() == 60


def test_bounds_hold_and_are_exact_after_a_wait():
    random, most = np.random.default_rng(2), np.zeros(2, np.int64)
    pool, layer = made()
    for turn in range(60):
        step(pool, layer, random, int(random.integers(1, 4)))
        if turn % 5 == 4:
            layer.cut(np.array([50, 40]), np.zeros(2, np.int64), RKV, ROUTE, None, None, None)
        layer.row_slots(most)
        taken = pool.taken()
        held = slots(layer.copy() if turn % 3 else layer, HEADS).sum(1)
        assert (most >= held).all()
        assert taken >= pool.info()[1] or turn % 3
        if turn % 3 == 0:
            layer.row_slots(most)
            assert most.tolist() == held.tolist()


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_told_at_the_next_call(which, bad):
    random = np.random.default_rng(3)
    pool, layer = made()
    step(pool, layer, random, 3)
    given = tokens(random, 2, 1)
    given[which][1, 1, 0, 5] = bad
    assert layer.step(*given, None, 0.25) == 0
    with pytest.raises(ValueError, match="NaN or infinity"):
        step(pool, layer, random)


def test_a_total_without_room_for_the_windows_changes_nothing():
    random = np.random.default_rng(4)
    pool, layer = made()
    step(pool, layer, random, 20)
    with pytest.raises(ValueError, match="bounds exclude the total"):
        layer.cut(np.array([-1, 7]), np.zeros(2, np.int64), RKV, ROUTE, *results(layer))
    assert slots(layer, HEADS).tolist() == [[20, 20]] * 2


def test_bounds_hold_where_scores_are_no_numbers():
    """The cut is told as a fault; what steps are laid out for holds all the same."""
    random, most = np.random.default_rng(12), np.zeros(2, np.int64)
    pool, layer = made(scorer="importance")
    step(pool, layer, random, 400)
    q, k, v = tokens(random, 2, 1)
    q[1, 1, 0, 3] = np.nan
    while missing := layer.step(q, k, v, None, 0.25):
        pool.add_slab(torch.zeros(missing * pool.page_bytes, dtype=torch.uint8))
    layer.cut(np.array([60, 60]), np.zeros(2, np.int64), ("importance", *RKV[1:]), ROUTE, None, None, None)
    layer.row_slots(most)
    with pytest.raises(ValueError, match="NaN or infinity"):
        layer.reserve(1)
    held = slots(layer, HEADS).sum(1)
    assert (most >= held).all() and held.tolist() == [60, 60]
    assert torch.isfinite(step(pool, layer, random)).all()


def limited(*limits):
    """Given heads: the route of `_core`."""
    return (3, 1.0, 0.0, 1.0, 0.0, 0.0, np.array(limits, np.int64).tobytes())


def test_limits_without_room_for_the_others_windows_change_nothing():
    random = np.random.default_rng(13)
    pool, layer = made()
    step(pool, layer, random, 40)
    for wanted in (results(layer), (None, None, None)):
        with pytest.raises(ValueError, match="bounds exclude the total"):
            layer.cut(np.array([-1, 40]), np.zeros(2, np.int64), RKV, limited(37, -1), *wanted)
    assert slots(layer, HEADS).tolist() == [[40, 40]] * 2
    layer.cut(np.array([80, 80]), np.zeros(2, np.int64), RKV, limited(78, -1), *results(layer))  # nothing to cut
    assert slots(layer, HEADS).tolist() == [[40, 40]] * 2


def test_heads_that_are_given():
    random, protect = np.random.default_rng(3), np.zeros(2, np.int64)
    pool, layer = made()
    for limits, totals, left in (
        ((12, -1), (50, 70), [12, 38, 12, 58]),
        ((-1, 9), (40, -1), [31, 9, 12, 78]),
        ((8, 10), (18, 18), [8, 10, 8, 10]),
    ):
        step(pool, layer, random, 60 if layer.tokens(0) == 0 else 20)
        budgets, lost, flags = results(layer)
        layer.cut(np.array(totals), protect, RKV, limited(*limits), budgets, lost, flags)
        found = slots(layer, HEADS).ravel()
        expected = [x if over else y for x, y, over in zip(left, found, np.repeat(flags, 2), strict=True)]
        assert found.tolist() == expected
        assert flags.any()


@pytest.mark.parametrize(
    ("limits", "totals", "reason"),
    [
        ((3, -1), (50, 50), "exclude the total"),  # a limit below the window
        ((2**40, -1), (50, 50), "cut"),
        ((30, 30), (50, 50), "cut"),  # more than a row keeps, which nobody would see
    ],
)
def test_limits_that_cannot_be_are_refused(limits, totals, reason):
    pool, layer = made()
    step(pool, layer, np.random.default_rng(0), 60)
    before = [positions(layer, 0, head).tolist() for head in range(HEADS)]
    with pytest.raises(ValueError, match=reason):
        layer.cut(np.array(totals), np.zeros(2, np.int64), RKV, limited(*limits), None, None, None)
    assert [positions(layer, 0, head).tolist() for head in range(HEADS)] == before


def test_wrong_places_are_refused():
    random = np.random.default_rng(5)
    _pool, layer = made()
    q, k, v = tokens(random, 2, 1)
    with pytest.raises(TypeError, match="sinks must be a torch tensor"):
        layer.step(q, k, v, None, 0.25, None, None, None, 0.0, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"sinks must be contiguous float32 \[4\]"):
        layer.step(q, k, v, None, 0.25, None, None, None, 0.0, torch.zeros(3))
    with pytest.raises(ValueError, match="PyCapsule"):
        _core.Pool("float32", 16, "cuda")


@pytest.mark.parametrize("scorer", ["rkv", "h2o", "raas"])
@pytest.mark.parametrize("order", [1, 2])
def test_the_order_of_threads_changes_nothing(order, scorer):
    def run(number):
        emulated.set_order(number)
        try:
            random = np.random.default_rng(6)
            pool, layer = made(3, scorer)
            shown = [step(pool, layer, random, 70)]
            for _ in range(3):
                shown.append(step(pool, layer, random))
                budgets, lost, flags = results(layer)
                layer.cut(np.array([90, 40, 60]), np.full(3, 2), (scorer, *RKV[1:]), ROUTE, budgets, lost, flags)
                shown += [torch.from_numpy(x) for x in (budgets, lost)]
            kept = [positions(layer, row, head).tolist() for row in range(3) for head in range(HEADS)]
            room, table = layer.table()
            pages = np.frombuffer(table, np.int32).reshape(6, room)
            used = [row[: -(-len(held) // 16)].tolist() for row, held in zip(pages, kept, strict=True)]
            columns = [layer.columns(row, head) for row in range(3) for head in range(HEADS)]
            return [x.numpy().tobytes() for x in shown], kept, used, columns
        finally:
            emulated.set_order(0)

    assert run(0) == run(order)


# ---- Caches ----


def generated(model, ids, **changes):
    cache = cache_of(model, budget=24, interval=8, window=4, **changes)
    model.generate(ids, **cache_argument(cache), max_new_tokens=50, do_sample=False)
    return cache


@pytest.mark.parametrize("method", caches.BUDGETED)
def test_every_method_keeps_the_same_positions(method, monkeypatch):
    model, ids = models.tiny(), models.prompt(40)
    expected = generated(model, ids, method=method)
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    cache = generated(model, ids, method=method)
    scorer = cache.policy.core_scorer
    if cache.pool.backend.note:
        assert cache.stats()["backends"] == [f"cpu on cpu (cuda-emulated has no scorer {scorer!r})"]
    else:
        assert cache.stats()["backends"] == ["cuda-emulated on cpu"]
    assert contents(cache)[0] == contents(expected)[0]
    ours, theirs = cache.stats(), expected.stats()
    for name in ("budgets", "slots", "evicted", "routings", "steps", "bytes", "ratio"):
        assert ours[name] == theirs[name], name
    assert ours["lost_mass"] == pytest.approx(theirs["lost_mass"], abs=1e-5)


@pytest.mark.parametrize("scorer", sorted(_core.scorers()))
def test_scorers_that_it_has(scorer):
    assert _core.supports(scorer, emulated.backend)


@pytest.mark.parametrize("name", ["llama", "llama-odd", "llama-wide", "gemma3"])
def test_nothing_evicted_gives_the_stock_tokens(on_device, name):
    model, ids = models.build(name), models.prompt(14)
    how = {"max_new_tokens": 40, "do_sample": False}
    expected = model.generate(ids, **cache_argument(DynamicCache(config=model.config)), **how)
    got = model.generate(ids, **cache_argument(cache_of(model, budget=400)), **how)
    assert torch.equal(expected, got)


@pytest.mark.parametrize("heads", [None, "profile"])
def test_decoding_does_not_wait(heads, on_device, tmp_path):
    model = models.tiny()
    write_gates(tmp_path / "heads.tsv", np.array([[1.6, 0.4], [0.7, 1.3], [1.0, 1.0]]))
    options = {"head_profile": str(tmp_path / "heads.tsv")} if heads else {}
    cache = cache_of(model, method="reasonalloc", budget=24, interval=8, window=4, heads=heads, options=options)
    with torch.inference_mode():
        model(models.prompt(40), **cache_argument(cache))
        for turn in range(60):
            if turn == 20:
                before = emulated.waits(), emulated.allocations()
            model(models.prompt(1), **cache_argument(cache))
    assert (emulated.waits(), emulated.allocations()) == before
    assert cache.stats()["evicted"] > 0


def test_observers_see_the_cuts(on_device):
    seen, model = [], models.tiny()
    config = ra.Config(method="rkv", budget=24, interval=8, window=4)
    cache = ra.ReasonAllocCache(model, config, observers=[lambda cut: seen.append(cut.budgets.sum())])
    model.generate(models.prompt(40), **cache_argument(cache), max_new_tokens=20, do_sample=False)
    assert seen and all(n == 48 for n in seen)


def test_a_cache_in_host_memory(on_device):
    model = models.tiny()
    cache = cache_of(model, budget=24, device="cpu")
    model.generate(models.prompt(40), **cache_argument(cache), max_new_tokens=5, do_sample=False)
    assert cache.stats()["backends"] == ["cpu on cpu"]


def test_a_module_of_another_build_is_as_good_as_none(monkeypatch):
    class Stale:
        backend = object()  # no capsule of this _core

    monkeypatch.setattr(backends, "import_module", lambda name: Stale)
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    assert backends.operators_backend() is None
    with pytest.raises(ValueError, match=r"was not built .*another build of reasonalloc"):
        backends.backend_for(torch.device("cpu"))


def test_backends_that_there_are_not(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "tpu")
    with pytest.raises(ValueError, match="must be one of cpu, cuda, cuda-emulated, got 'tpu'"):
        backends.backend_for(torch.device("cpu"))
    with pytest.raises(ValueError, match="device must be None"):
        ra.Config(budget=64, device="gpu")


def test_a_cache_beside_a_model_on_the_cpu(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    for place in (None, "cpu", "model"):
        assert backends.backend_for(torch.device("cpu"), place) is backends.IN_HOST_MEMORY


def test_a_cache_beside_a_model_on_a_gpu(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setitem(backends._MODULES, "cuda", "reasonalloc._cuda_emulated")
    where = torch.device("cuda", 1)
    for place in (None, "model"):
        name, device, capsule, note = backends.backend_for(where, place)
        assert (name, device, note) == ("cuda", where, "") and capsule is emulated.backend
    assert backends.backend_for(where, "cpu") is backends.IN_HOST_MEMORY
    monkeypatch.setenv(backends.VARIABLE, "cpu")
    assert backends.backend_for(where) is backends.IN_HOST_MEMORY


@pytest.mark.parametrize("reason", ["was not built", "does not run on cuda:1: no kernel image"])
def test_a_gpu_without_the_backend(reason, monkeypatch):
    """Host memory, with the reason; what was asked for by name is refused."""

    class Built:
        backend, why_not_on = emulated.backend, staticmethod(lambda number: "no kernel image" if number == 1 else "")

    monkeypatch.delenv(backends.VARIABLE, raising=False)
    if reason == "was not built":
        monkeypatch.setitem(backends._MODULES, "cuda", "reasonalloc._no_such_module")
    else:
        monkeypatch.setattr(backends, "import_module", lambda name: Built)
    where = torch.device("cuda", 1)
    found = backends.backend_for(where)
    assert found[:3] == backends.IN_HOST_MEMORY[:3]
    assert reason in str(found)
    with pytest.raises(ValueError, match=reason):
        backends.backend_for(where, "model")
    monkeypatch.setenv(backends.VARIABLE, "cuda")
    with pytest.raises(ValueError, match=reason):
        backends.backend_for(where)


def test_a_device_without_a_backend(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    assert backends.backend_for(torch.device("mps")) is backends.IN_HOST_MEMORY
    with pytest.raises(ValueError, match="there is no backend for mps"):
        backends.backend_for(torch.device("mps"), "model")


def test_that_the_emulation_runs():
    assert emulated.why_not_on(0) == ""
    with pytest.raises(TypeError):
        emulated.why_not_on("cuda:0")
    with pytest.raises(ValueError, match="got -1"):
        emulated.why_not_on(-1)
