"""_core.Layer: what it refuses, and that nothing has changed then."""

import subprocess
import sys
import textwrap
import threading
import time

import layers
import numpy as np
import pytest
import torch
from layers import DTYPES, RKV, ROUTE, add_pages, assert_same, cut, make, read, slots, snapshot, step, tokens

from reasonalloc import _core

pytestmark = pytest.mark.core

# ---- Numbers that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_and_values_must_be_finite(isa, dtype, bad):
    for dim in (1, 5, 16, 40):
        shape = (2, 2, 1, dim)
        pool, layer = make(dtype, *shape)
        step(pool, layer, *tokens(shape, 10, dtype))
        before, info = snapshot(layer), pool.info()
        for which in (1, 2):
            for at in ((0, 0, 0, 0), (1, 1, 2, dim - 1)):
                arguments = tokens(shape, 3, dtype, 1)
                arguments[which][at] = bad
                add_pages(pool, 8 - pool.info()[2]) if pool.info()[2] < 8 else None
                info = pool.info()
                assert layer.reserve(3) == 0
                with pytest.raises(ValueError, match="NaN or infinity"):
                    layer.step(*arguments, None, 1.0)
                assert_same(snapshot(layer), before)
                assert pool.info() == info


def test_largest_numbers_are_finite():
    for dtype, torch_dtype in DTYPES.items():
        pool, layer = make(dtype)
        q, k, v = tokens((2, 2, 2, 16), 3, dtype)
        k[0, 0, 0, 0] = torch.finfo(torch_dtype).max
        v[0, 0, 0, 0] = torch.finfo(torch_dtype).min
        step(pool, layer, q, k, v, attend=False)
        assert read(layer, 0, 0, 16, False)[0, 0] == torch.finfo(torch_dtype).max


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_queries_that_are_not_finite_give_no_cut(bad):
    pool, layer = make()
    q, k, v = tokens((2, 2, 2, 16), 40)
    q[1, 2, -1, 3] = bad
    step(pool, layer, q, k, v, attend=False)
    before = snapshot(layer)
    with pytest.raises(ValueError, match="NaN or infinity"):
        cut(pool, layer, 2, [-1, 30])
    assert_same(snapshot(layer), before)
    cut(pool, layer, 2, [30, -1])  # the other row is fine
    assert slots(layer, 2)[0].sum() == 30


# ---- Arguments that do not fit ---------------------------------------------------------------------------------------


def altered(index, change):
    def apply():
        arguments = [*tokens((2, 2, 2, 16), 3), torch.zeros(2, 3, 4, 16), 0.25, None, None, None, 0.0, None, None]
        arguments[index] = change(arguments[index])
        return arguments

    return apply


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (altered(0, lambda q: q[:, :3]), ValueError, r"queries must have shape \[2, 4, 3, 16\], got \[2, 3, 3, 16\]"),
        (altered(0, lambda q: q[..., :8]), ValueError, r"queries must have shape"),
        (altered(0, lambda q: q[:, :, :0]), ValueError, "queries must have shape"),
        (altered(0, lambda q: q[0]), ValueError, "queries must have 4 dimensions, got 3"),
        (altered(0, lambda q: q.double()), TypeError, "queries: dtype not supported"),
        (altered(0, lambda q: q.to(torch.int32)), TypeError, "dtype not supported"),
        (altered(0, lambda q: q.to(torch.complex64)), TypeError, "dtype not supported"),
        (altered(0, lambda q: q.numpy()), TypeError, "torch tensor"),
        (altered(0, lambda q: q.tolist()), TypeError, "torch tensor"),
        (altered(0, lambda q: None), TypeError, "torch tensor"),
        (altered(0, lambda q: q.transpose(2, 3).contiguous().transpose(2, 3)), ValueError, "contiguous in its last"),
        (altered(1, lambda k: k[:1]), ValueError, "keys must have shape"),
        (altered(1, lambda k: k[:, :, :2]), ValueError, "keys must have shape"),
        (altered(1, lambda k: k[..., ::2]), ValueError, "keys must have shape"),
        (altered(1, lambda k: torch.cat([k, k], -1)[..., ::2]), ValueError, "contiguous in its last"),
        (altered(2, lambda v: v[:, :1]), ValueError, "values must have shape"),
        (altered(0, lambda q: torch._neg_view(q)), ValueError, r"negated lazily: give queries.resolve_neg\(\)"),
        (altered(2, lambda v: torch._neg_view(v)), ValueError, "negated lazily"),
        (altered(3, lambda o: o[:, :2]), ValueError, r"out must be \[2, 3, 4, 16\]"),
        (altered(3, lambda o: o.long()), TypeError, "out: dtype not supported"),
        (altered(3, lambda o: o.transpose(1, 2)), ValueError, "out must be"),
        (altered(3, lambda o: o[:1].expand(2, 3, 4, 16)), ValueError, "out must be"),  # rows would overwrite each other
        (altered(3, lambda o: o.numpy()), TypeError, "torch tensor"),
        (altered(4, lambda s: "1"), TypeError, None),
        (altered(4, lambda s: float("nan")), ValueError, "scale must be finite"),
        (altered(4, lambda s: float("inf")), ValueError, "scale must be finite"),
        (altered(4, lambda s: 1e39), ValueError, "scale must be finite"),  # in float32
        (altered(5, lambda c: np.zeros(3, np.int64)), ValueError, "cut_in must hold 2 items of int64, got 3"),
        (altered(5, lambda c: np.zeros(2, np.int32)), ValueError, "cut_in must hold 2 items of int64"),
        (altered(5, lambda c: [1, 1]), TypeError, "bytes-like"),
        (altered(6, lambda b: np.array([0, 3])), ValueError, "begin must hold 3 items"),
        (altered(6, lambda b: np.array([0, 4, 5])), ValueError, "more new tokens than the tensors' 3"),
        (altered(6, lambda b: np.array([1, 2, 3])), ValueError, "begin and index must rise"),
        (altered(6, lambda b: np.array([0, 2, 1])), ValueError, "begin and index must rise"),
        (altered(6, lambda b: np.array([0, 2, 2**62])), ValueError, "begin must rise"),
        (altered(7, lambda i: np.zeros(4, np.int64)), ValueError, "index needs begin"),
        (altered(8, lambda s: -1.0), ValueError, "softcap must not be negative"),
        (altered(9, lambda s: np.zeros(3, np.float32)), ValueError, "sinks must hold 4 items of float32, got 3"),
        (altered(9, lambda s: np.full(4, np.nan, np.float32)), ValueError, "NaN or infinity"),
        (altered(10, lambda v: np.ones((6, 2), np.bool_)), ValueError, r"visible must be bool \[6, at least 3\]"),
    ],
)
def test_step_refuses_what_does_not_fit(arguments, error, message):
    pool, layer = make()
    add_pages(pool, 8)
    assert layer.reserve(3) == 0
    before = snapshot(layer)
    with pytest.raises(error, match=message):
        layer.step(*arguments())
    assert_same(snapshot(layer), before)
    assert pool.info()[1] == 0
    with pytest.raises(TypeError, match="step takes 5 to 12 arguments, got 4"):
        layer.step(*arguments()[:4])


def test_tensors_without_memory_are_refused():
    pool, layer = make()
    add_pages(pool, 8)
    q, k, v = tokens((2, 2, 2, 16), 3)
    for bad in (k.to("meta"), k.to_sparse(), k.to_mkldnn()):
        with pytest.raises((TypeError, ValueError, RuntimeError, BufferError)):
            layer.step(q, bad, v, None, 1.0)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(k)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        layer.step(q, fake, v, None, 1.0)
    assert layer.tokens(0) == 0


@pytest.mark.parametrize("sizes", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 2, 3, 1), (1, 2, 1, 1), (1, 1, 1, 0), (-1, 1, 1, 1)])
def test_layers_of_impossible_sizes(sizes):
    with pytest.raises(ValueError, match="rows, kv_heads and window must be at least 1"):
        _core.Layer(_core.Pool("float32", 8), *sizes)


@pytest.mark.parametrize(
    "sizes",
    [(4, 2**62, 2**62, 1), (1, 1, 1, 2**61), (2**62, 1, 1, 1), (2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1)],
)
def test_layers_that_fit_into_no_memory(sizes):
    """Products of sizes that overflow."""
    with pytest.raises((ValueError, MemoryError)):
        _core.Layer(_core.Pool("float32", 8), *sizes)


def test_pools_of_impossible_kinds():
    for dim in (0, -1, 1025):
        with pytest.raises(ValueError, match="head_dim must be between 1 and 1024"):
            _core.Pool("float32", dim)
    with pytest.raises(TypeError, match="'float64' not supported"):
        _core.Pool("float64", 8)
    with pytest.raises(TypeError):
        _core.Layer(object(), 1, 1, 1, 1)
    assert _core.Pool("float16", 1024).page_bytes == 2 * 16 * 1024 * 2


def test_rows_and_heads_that_do_not_exist():
    pool, layer = make()
    step(pool, layer, *tokens((2, 2, 2, 16), 20))
    out = np.zeros((20, 16), np.float32)
    for row, head in ((2, 0), (-1, 0), (0, 2), (0, -1)):
        with pytest.raises(IndexError):
            layer.positions(row, head)
        with pytest.raises(IndexError):
            layer.read(row, head, False, out)
    for row in (2, -1):
        for call in (
            lambda r=row: layer.tokens(r),
            lambda r=row: layer.queries(r),
            lambda r=row: layers.scores(layer, r, RKV, out),
            lambda r=row: layers.evict_once(layer, r, np.zeros(2, np.int64), out, 0, np.zeros(2)),
        ):
            with pytest.raises(IndexError):
                call()
    for source in ([2], [-2, 0], []):
        with pytest.raises(ValueError, match="rows"):
            layer.reorder(np.array(source, np.int64))
    assert layer.rows == 2


def test_buffers_that_do_not_fit():
    pool, layer = make()
    step(pool, layer, *tokens((2, 2, 2, 16), 20))
    before = snapshot(layer)
    good = {
        "totals": np.full(2, 12, np.int64),
        "protect": np.zeros(2, np.int64),
        "score": RKV,
        "route": ROUTE,
        "budgets": np.zeros((2, 2), np.int64),
        "lost": np.zeros((2, 2)),
        "cut": np.zeros(2, np.bool_),
    }
    locked = np.zeros((2, 2), np.int64)
    locked.flags.writeable = False
    for name, bad, error in [
        ("totals", np.full(3, 12, np.int64), ValueError),
        ("totals", np.full(2, 12.0), ValueError),
        ("totals", [12, 12], TypeError),
        ("totals", np.full(2, 7, np.int64), ValueError),  # below the windows
        ("totals", np.full((2, 2), 12, np.int64)[:, 0], (ValueError, BufferError)),
        ("protect", np.zeros(2, np.int32), ValueError),
        ("score", ("none", 0.1, 0.5, 7, 0), ValueError),
        ("score", ("rkv", 1.1, 0.5, 7, 0), ValueError),
        ("score", ("rkv", float("nan"), 0.5, 7, 0), ValueError),
        ("score", ("rkv", 0.1, float("nan"), 7, 0), ValueError),
        ("score", ("rkv", 0.1, 0.5, 6, 0), ValueError),
        ("score", ("rkv", 0.1, 0.5, -1, 0), ValueError),
        ("score", ("rkv", 0.1, 0.5, 7), TypeError),
        ("score", None, TypeError),
        ("score", ["rkv", 0.1, 0.5, 7, 0], TypeError),
        ("route", (9, 0.5, 0.25, 2.0, 0.25, 0.2), ValueError),
        ("route", (1, -1.0, 0.25, 2.0, 0.25, 0.2), ValueError),
        ("route", (1, 0.5, 0.25, 0.5, 0.25, 0.2), ValueError),
        ("route", (1, 0.5, 0.25, 2.0, 1.5, 0.2), ValueError),
        ("route", (2, 0.5, 0.25, 2.0, 0.25, float("nan")), ValueError),
        ("route", "route", TypeError),
        ("route", None, TypeError),
        ("budgets", locked, (ValueError, BufferError)),
        ("budgets", np.zeros(3, np.int64), ValueError),
        ("lost", np.zeros((2, 2), np.float32), ValueError),
        ("cut", np.zeros(2, np.int8), ValueError),
    ]:
        with pytest.raises(error):
            layer.cut(*{**good, name: bad}.values())
        assert_same(snapshot(layer), before)
    with pytest.raises(ValueError, match="items"):
        layer.slots(np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="items"):
        layer.read(0, 0, False, np.zeros((19, 16), np.float32))
    with pytest.raises(ValueError, match="format"):
        layer.read(0, 0, False, np.zeros((20, 16)))
    with pytest.raises(ValueError):
        layer.crop(-1)


class Hook:
    """An argument whose own code calls the layer while its other arguments are looked at."""

    def __init__(self, call):
        self.call, self.errors = call, []

    def run(self):
        try:
            self.call()
        except RuntimeError as error:
            self.errors.append(str(error))

    def __float__(self):
        self.run()
        return 0.35

    def __index__(self):
        self.run()
        return 1

    def __len__(self):
        self.run()
        return 1


def test_arguments_that_change_the_layer():
    """What they would change is claimed already: the call goes on with what it has checked."""
    pool, layer = make()
    step(pool, layer, *tokens((2, 2, 2, 16), 20))
    before = snapshot(layer)
    q, k, v = tokens((2, 2, 2, 16), 3, seed=1)
    add_pages(pool, 32)
    for change in (lambda: layer.reorder(np.zeros(64, np.int64)), layer.reset, lambda: pool.trim(0), layer.copy):
        scale, row, source = Hook(change), Hook(change), Hook(change)
        assert layer.step(q, k, v, None, scale) == 0
        layer.crop(3)
        layer.positions(row, row)
        with pytest.raises((TypeError, BufferError)):
            layer.reorder(source)
        told = {"the cache is in use by another thread"}
        assert set(scale.errors) == set(row.errors) == set(source.errors) == told
        assert snapshot(layer)[:2] == before[:2]


def test_one_row_that_cannot_be_cut_leaves_all():
    pool, layer = make(window=4)
    step(pool, layer, *tokens((2, 2, 2, 16), 40))
    before, flags = snapshot(layer), np.ones(2, np.bool_)
    arguments = (np.array([20, 3]), np.zeros(2, np.int64), RKV, ROUTE, np.zeros((2, 2), np.int64), np.zeros((2, 2)))
    with pytest.raises(ValueError):
        layer.cut(*arguments, flags)
    assert_same(snapshot(layer), before)
    assert not flags.any()


# ---- Threads ---------------------------------------------------------------------------------------------------------


def test_another_thread_is_told():
    pool, layer = make(rows=8, heads=2, group=4, dim=128)
    shape = (8, 2, 4, 128)
    for seed in range(4):
        step(pool, layer, *tokens(shape, 250, seed=seed), attend=False)
    q, k, v = tokens(shape, 200)
    out = torch.empty(8, 200, 8, 128)
    add_pages(pool, 8 * 2 * 30)
    one = tokens(shape, 1)
    done, told, wrong = threading.Event(), [], []

    def when_free(call):  # the calls below may come in between as well
        while True:
            try:
                return call()
            except RuntimeError as error:
                told.append(str(error))

    def work():
        try:
            for _ in range(2):
                assert when_free(lambda: layer.reserve(200)) == 0
                when_free(lambda: layer.step(q, k, v, out, 0.1))
        finally:
            done.set()

    worker = threading.Thread(target=work)
    calls = [
        lambda: layer.reorder(np.arange(8)),
        lambda: layer.crop(0),
        lambda: pool.trim(0),
        lambda: cut(pool, layer, 2, [-1] * 8),
    ]
    worker.start()
    while not done.wait(0.002):
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                told.append(str(error))
            except Exception as error:
                wrong.append(error)
    worker.join()
    assert not wrong
    assert told
    assert set(told) == {"the cache is in use by another thread"}
    assert layer.tokens(0) == 1400
    out = step(pool, layer, *one)  # and the cache is free again, from whatever thread
    assert out.isfinite().all()


def test_layers_that_die_beside_another_thread():
    """Freed, as the garbage collector does, while another thread is in their pool: no page is lost."""
    shape = (2, 4, 1, 16)
    pool, busy = make(rows=2, heads=4, group=1)
    add_pages(pool, 6000)
    few, many = tokens(shape, 3), tokens(shape, 300)
    dying = []
    for _ in range(400):
        layer = _core.Layer(pool, 2, 4, 4, 8)
        layer.step(*few, None, 1.0)
        dying.append(layer)
    del layer
    stop, failed = threading.Event(), []

    def work():
        try:
            while not stop.is_set():
                busy.step(*many, None, 1.0)
                busy.reset()
        except BaseException as error:
            failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    while dying:
        dying.pop()
        time.sleep(1e-5)
    stop.set()
    worker.join()
    busy.reset()
    assert not failed
    assert pool.info()[1] == 0
    assert step(pool, busy, *few).isfinite().all()


def test_reading_beside_another_thread_is_refused():
    """In a process of its own: what would be read is being moved meanwhile."""
    code = """
    import importlib.util, sys, threading, time, numpy as np, torch
    spec = importlib.util.spec_from_file_location("reasonalloc._core", sys.argv[1])  # without transformers
    _core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(_core)
    torch.set_num_threads(1)
    pool = _core.Pool("float32", 128)
    layer = _core.Layer(pool, 8, 2, 8, 8)
    pool.add_slab(torch.empty(8 * 2 * 80 * pool.page_bytes, dtype=torch.uint8))
    k = torch.randn(8, 2, 600, 128)
    q = torch.randn(8, 8, 600, 128)
    assert layer.reserve(600) == 0
    layer.step(q, k, k, None, 0.1)
    assert layer.reserve(600) == 0
    out = torch.empty(8, 600, 8, 128)
    worker = threading.Thread(target=lambda: layer.step(q, k, k, out, 0.1))
    room = np.empty((1200, 128), np.float32)
    slab = torch.empty(pool.page_bytes, dtype=torch.uint8)
    calls = {
        "positions": lambda: layer.positions(0, 0),
        "slots": lambda: layer.slots(np.zeros((8, 2), np.int64)),
        "queries": lambda: layer.queries(0),
        "tokens": lambda: layer.tokens(0),
        "read": lambda: layer.read(0, 0, False, room),
        "add_slab": lambda: pool.add_slab(slab),
        "reset_peak": pool.reset_peak,
        "new": lambda: _core.Layer(pool, 1, 1, 1, 1),
    }
    worker.start()
    time.sleep(0.05)
    for name, call in calls.items():
        assert worker.is_alive(), "too fast"
        try:
            call()
        except RuntimeError:
            continue
        print(name)
    worker.join()
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), _core.__file__],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr[-500:]) == (0, "", "")
