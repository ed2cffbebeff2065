"""torch.ops.reasonalloc against plain torch in float64; tracing, errors, ownership."""

import math
import os
import resource

import pytest
import torch

from reasonalloc import _core, ops
from reasonalloc.store.backends import operators_backend

pytestmark = pytest.mark.core

PAGE = ops.PAGE_TOKENS
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


class Place:
    """Where operators run: the functions of `ops`, and how a case gets there."""

    def __init__(self, name):
        self.name = name

    def there(self, arguments):
        """What a case's tensors are at the place."""
        return tuple(a.cuda() if self.name == "cuda" and isinstance(a, torch.Tensor) else a for a in arguments)

    def call(self, name, *arguments):
        if self.name != "cuda-emulated":
            return getattr(ops, name)(*arguments)
        # The kernel for CUDA tensors, as the dispatcher calls it: in the emulation the device's tensors are the CPU's.
        key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return getattr(torch.ops.reasonalloc, name).default.redispatch(key, *arguments)

    def wait(self):
        """Until what was called has run: a fault is told only once its kernel has found it."""
        if self.name == "cuda":
            torch.cuda.synchronize()

    def take_fault(self):
        """What an operator before was given, so that the next test is not told of it; None for nothing wrong."""
        self.wait()
        try:
            self.call("redundancy", *self.there((torch.ones(1, 1, 1), 0.5)))
        except RuntimeError as error:
            return str(error)
        return None


def emulated_backend():
    return pytest.importorskip("reasonalloc._cuda_emulated", reason="built with REASONALLOC_EMULATE=1").backend


@pytest.fixture(params=["cpu", "cuda-emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    if request.param == "cuda-emulated":
        _core.register_torch_ops(emulated_backend())
    place = Place(request.param)
    yield place
    place.take_fault()
    _core.register_torch_ops(operators_backend())


@pytest.fixture
def device(place):
    """Places where nobody waits."""
    if place.name == "cpu":
        pytest.skip("the CPU raises at once")
    return place


# ---- References ------------------------------------------------------------------------------------------------------


def attend_reference(query, keys, values, scale):
    """query [Hq, T, D], keys and values [H][N, D] -> [T, Hq, D], float64."""
    heads, tokens, dim = query.shape
    out = torch.zeros(tokens, heads, dim, dtype=torch.float64)
    for head in range(heads):
        own = head // (heads // len(keys))
        k, v = keys[own].double(), values[own].double()
        for t in range(tokens):
            seen = len(k) - tokens + t + 1
            logits = k[:seen] @ query[head, t].double() * scale
            out[t, head] = logits.softmax(0) @ v[:seen]
    return out


def importance_reference(queries, keys, kernel):
    heads, tokens, dim = keys.shape
    window = queries.shape[1]
    older = keys[:, : tokens - window].double()
    logits = queries.double().view(heads, -1, window, dim) @ older[:, None].transpose(-1, -2) / math.sqrt(dim)
    mass = logits.amax(1).softmax(-1).mean(1)
    return torch.nn.functional.max_pool1d(mass, kernel, stride=1, padding=kernel // 2)


def redundancy_reference(keys, threshold):
    out = []
    for k in keys.double():
        unit = k / (k.norm(dim=-1, keepdim=True) + 1e-8)
        cosine = unit @ unit.T
        cosine.fill_diagonal_(0)
        for row in cosine:
            above = (row > threshold).nonzero()
            row[above[-1, 0] if len(above) else 0] = 0
        out.append(cosine.mean(0).softmax(-1))
    return torch.stack(out)


# ---- Inputs ----------------------------------------------------------------------------------------------------------


def make_pages(dtype, lengths, dim, table_pages, seed=0):
    """Pages scattered over a pool that has more of them, and what each head holds."""
    generator = torch.Generator().manual_seed(seed)
    rows, heads = len(lengths), len(lengths[0])
    count = rows * heads * table_pages + 3
    pages = torch.full((count, 2 * PAGE * dim), math.nan, dtype=dtype)
    shuffled = torch.randperm(count, generator=generator).int()
    table = shuffled[:-3].view(rows, heads, table_pages)
    keys = [[torch.randn(n, dim, generator=generator).to(dtype) for n in row] for row in lengths]
    values = [[torch.randn(n, dim, generator=generator).to(dtype) for n in row] for row in lengths]
    for b in range(rows):
        for h in range(heads):
            for slot in range(lengths[b][h]):
                write(pages[table[b, h, slot // PAGE]], slot % PAGE, keys[b][h][slot], values[b][h][slot])
            table[b, h, (lengths[b][h] + PAGE - 1) // PAGE :] = -1  # not read
    return pages, table, torch.tensor(lengths, dtype=torch.int32), keys, values


def write(page, slot, key, value):
    dim = len(key)
    page[: PAGE * dim].view(dim, PAGE)[:, slot] = key
    page[PAGE * dim :].view(PAGE, dim)[slot] = value


def attend_case(dtype=torch.float32, lengths=((5, 40), (17, 16)), group=2, tokens=1, dim=16, table_pages=4):
    pages, table, counts, keys, values = make_pages(dtype, lengths, dim, table_pages)
    query = torch.randn(len(lengths), len(lengths[0]) * group, tokens, dim).to(dtype)
    return (query, pages, table, counts, dim**-0.5), keys, values


def append_case(dtype=torch.float32, lengths=((5, 40), (17, 0)), tokens=3, dim=16):
    pages, table, counts, keys, values = make_pages(dtype, [[n + tokens for n in row] for row in lengths], dim, 4)
    new_keys = torch.stack([torch.stack([k[-tokens:] for k in row]) for row in keys])
    new_values = torch.stack([torch.stack([v[-tokens:] for v in row]) for row in values])
    before = make_pages(dtype, [[n + tokens for n in row] for row in lengths], dim, 4)[0]
    for b, row in enumerate(lengths):
        for h, n in enumerate(row):
            for slot in range(n, n + tokens):
                nothing = torch.full((dim,), math.nan, dtype=dtype)
                write(before[table[b, h, slot // PAGE]], slot % PAGE, nothing, nothing)
    return (before, new_keys, new_values, table, counts - tokens), pages


def score_case(heads=2, group=3, window=4, tokens=37, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(heads, tokens, dim, generator=generator)
    keys[:, 1::3] = keys[:, :-1:3][:, : len(keys[0, 1::3])] * 1.5  # near copies, so that the threshold bites
    return torch.randn(heads * group, window, dim, generator=generator), keys


def sample(name):
    """Arguments of an operator, for the checks that all of them pass through."""
    queries, keys = score_case()
    return {
        "attend": lambda: attend_case()[0],
        "append_": lambda: append_case()[0],
        "rkv_score": lambda: (queries, keys, 0.1, 0.5, 7),
        "redundancy": lambda: (keys, 0.5),
        "importance": lambda: (queries, keys, 7),
    }[name]()


NAMES = ("attend", "append_", "rkv_score", "redundancy", "importance")


# ---- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "dim", "group"), [(1, 64, 3), (1, 7, 1), (3, 16, 2), (5, 33, 4), (1, 128, 1)])
def test_attend_is_softmax_attention(dtype, tokens, dim, group, place):
    lengths = ((5, 40), (17, 16), (64, 31))
    arguments, keys, values = attend_case(dtype, lengths, group, tokens, dim)
    out = place.call("attend", *place.there(arguments)).cpu()
    assert out.dtype == dtype
    assert out.shape == (3, tokens, 2 * group, dim)
    for row in range(3):
        expected = attend_reference(arguments[0][row], keys[row], values[row], arguments[4])
        torch.testing.assert_close(out[row].double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_heads_are_attended_in_pieces(dtype, place):
    lengths = ((1100, 3), (700, 1279))
    arguments, keys, values = attend_case(dtype, lengths, group=4, dim=64, table_pages=81)
    out = place.call("attend", *place.there(arguments)).cpu()
    again = place.call("attend", *place.there(arguments)).cpu()
    assert torch.equal(out, again)
    for row in range(2):
        expected = attend_reference(arguments[0][row], keys[row], values[row], arguments[4])
        torch.testing.assert_close(out[row].double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "dim"), [(1, 64), (3, 7), (17, 16)])
def test_append_writes_behind_what_is_there(dtype, tokens, dim, place):
    arguments, expected = append_case(dtype, tokens=tokens, dim=dim)
    arguments = place.there(arguments)
    assert place.call("append_", *arguments) is None
    torch.testing.assert_close(arguments[0].cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kernel", [1, 7])
@pytest.mark.parametrize(
    ("heads", "group", "window", "tokens", "dim"),
    [(2, 3, 4, 37, 16), (1, 1, 1, 2, 7), (3, 2, 8, 150, 64), (2, 1, 5, 6, 33)],
)
def test_scores_are_rkv(heads, group, window, tokens, dim, kernel, place):
    queries, keys = score_case(heads, group, window, tokens, dim)
    important = importance_reference(queries, keys, kernel)
    redundant = redundancy_reference(keys, 0.5)
    queries, keys = place.there((queries, keys))

    def compare(expected, name, *arguments):
        found = place.call(name, *arguments).cpu().double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    compare(important, "importance", queries, keys, kernel)
    compare(redundant, "redundancy", keys, 0.5)
    compare(0.3 * important - 0.7 * redundant[:, : tokens - window], "rkv_score", queries, keys, 0.3, 0.5, kernel)


def test_nothing_in_gives_nothing_out(place):
    queries, keys = place.there(score_case(window=4, tokens=4))
    assert place.call("rkv_score", queries, keys, 0.1, 0.5, 7).shape == (2, 0)
    assert place.call("redundancy", *place.there((torch.randn(2, 0, 8), 0.5))).shape == (2, 0)
    one = place.call("redundancy", *place.there((torch.randn(2, 1, 8), 0.5)))
    torch.testing.assert_close(one.cpu(), torch.ones(2, 1))
    pages = torch.zeros(1, 32 * 8)
    table, lengths = torch.zeros(0, 2, 1, dtype=torch.int32), torch.zeros(0, 2, dtype=torch.int32)
    arguments = place.there((torch.zeros(0, 4, 1, 8), pages, table, lengths, 1.0))
    assert place.call("attend", *arguments).shape == (0, 1, 4, 8)
    new = torch.zeros(0, 2, 1, 8)
    place.call("append_", *place.there((pages, new, new, table, lengths)))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_thread_count_changes_nothing(threads):
    arguments, _, _ = attend_case(lengths=((50, 40), (17, 64)), dim=64)
    queries, keys = score_case(heads=5, tokens=200)
    expected = ops.attend(*arguments), ops.rkv_score(queries, keys)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        given = ops.attend(*arguments), ops.rkv_score(queries, keys)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


# ---- Tracing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.reasonalloc, name).default, sample(name))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_compile_traces_the_whole_graph(name, dynamic):
    torch.compiler.reset()  # every case compiles the same code object anew
    operator, arguments = getattr(ops, name), sample(name)

    def step(first, *rest):
        out = operator(first, *rest)
        return first + 1 if out is None else out * 2

    expected = step(arguments[0].clone(), *arguments[1:])
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.testing.assert_close(compiled(arguments[0].clone(), *arguments[1:]), expected, equal_nan=True)


@pytest.mark.slow
def test_inductor_compiles_a_decode_step():
    (pages, keys, values, table, lengths), _ = append_case(tokens=1)
    query = torch.randn(2, 4, 1, 16)

    def step(query, pages, keys, values, table, lengths):
        ops.append_(pages, keys, values, table, lengths)
        return ops.attend(query * 2, pages, table, lengths + 1, 0.25).relu()

    expected_pages = pages.clone()
    expected = step(query, expected_pages, keys, values, table, lengths)
    given = torch.compile(step, fullgraph=True)(query, pages, keys, values, table, lengths)
    torch.testing.assert_close(given, expected)
    torch.testing.assert_close(pages, expected_pages, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_have_the_shapes(name):
    arguments = sample(name)
    on_meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    given, expected = getattr(ops, name)(*on_meta), getattr(ops, name)(*arguments)
    if expected is not None:
        assert (given.shape, given.dtype) == (expected.shape, expected.dtype)


# ---- Errors ----------------------------------------------------------------------------------------------------------


def replaced(arguments, index, value):
    return (*arguments[:index], value, *arguments[index + 1 :])


def broken(name, index, change):
    arguments = sample(name)
    return replaced(arguments, index, change(arguments[index]))


def at(index, value):
    def change(tensor):
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "index", "change", "message"),
    [
        ("attend", 0, lambda q: q[0], r"attend: query has shape \[4, 1, 16\], expected \[B, Hq, T, D\]"),
        ("attend", 0, lambda q: q.double(), "query is float64, expected float32, bfloat16 or float16"),
        ("attend", 0, lambda q: q[:, :3].contiguous(), "query has 3 heads, which is no multiple of table's 2"),
        ("attend", 0, lambda q: q.new_zeros(2, 4, 1, 1025), "head size 1025, allowed are 1 to 1024"),
        ("attend", 0, lambda q: q.new_zeros(4, 2, 1, 16).transpose(0, 1), "query is not contiguous"),
        ("attend", 1, lambda p: p[:, 1:].contiguous(), r"pages has shape \[19, 511\], expected \[P, 32 D\] = "),
        ("attend", 1, lambda p: p.half(), "pages is float16, expected float32"),
        ("attend", 2, lambda t: t.long(), "table is int64, expected int32"),
        ("attend", 2, lambda t: t[:1], r"table has shape \[1, 2, 4\], expected \[B, H, M\] = \[2, \*, \*\]"),
        ("attend", 2, at((1, 0, 1), 19), r"table\[1, 0, 1\] is page 19 of 19"),
        ("attend", 2, at((1, 0, 1), -1), r"table\[1, 0, 1\] is page -1 of 19"),
        ("attend", 3, at((0, 1), 0), r"lengths\[0, 1\] is 0, allowed are 1 to 64"),
        ("attend", 3, at((0, 1), 65), r"lengths\[0, 1\] is 65, allowed are 1 to 64"),
        ("attend", 4, lambda _: math.inf, "scale is inf, expected a finite number"),
        ("append_", 1, lambda k: k.double(), "values is float32, expected float64"),
        ("append_", 2, lambda v: v[:, :, :1].contiguous(), r"values has shape \[2, 2, 1, 16\], expected"),
        ("append_", 3, lambda t: t[:, :1].contiguous(), r"table has shape \[2, 1, 4\], expected"),
        ("append_", 4, at((0, 1), 62), r"lengths\[0, 1\] is 62, allowed are 0 to 61"),
        ("append_", 4, at((0, 1), -1), r"lengths\[0, 1\] is -1, allowed are 0 to 61"),
        ("rkv_score", 0, lambda q: q.half(), "queries is float16, expected float32"),
        ("rkv_score", 0, lambda q: q[:5], "queries has 5 heads, which is no multiple of keys' 2"),
        ("rkv_score", 0, lambda q: q.new_zeros(6, 38, 16), "window of 38, allowed are 1 to keys' 37 tokens"),
        ("rkv_score", 1, lambda k: k[:, :, :8].contiguous(), r"keys has shape \[2, 37, 8\], expected"),
        ("rkv_score", 1, at((1, 3), math.nan), "queries or keys hold NaN or infinity"),
        ("rkv_score", 2, lambda _: 1.5, "alpha is 1.5, allowed are 0 to 1"),
        ("rkv_score", 2, lambda _: math.nan, "alpha is nan"),
        ("rkv_score", 4, lambda _: 4, "kernel is 4, allowed are odd widths from 1"),
        ("importance", 2, lambda _: 0, "kernel is 0, allowed are odd widths from 1"),
        ("redundancy", 1, lambda _: math.nan, "threshold is nan"),
        ("redundancy", 0, at((1, 3), -math.inf), "keys hold NaN or infinity"),
        ("redundancy", 0, lambda k: k[0], r"redundancy: keys has shape \[37, 16\], expected \[H, N, D\]"),
    ],
)
def test_errors_tell_what_was_given(name, index, change, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(ops, name)(*broken(name, index, change))


@pytest.mark.parametrize("name", NAMES)
def test_cuda_tensors_are_refused_without_a_backend(name):
    """The kernel for CUDA tensors, as the dispatcher calls it, given the CPU's."""
    operator = getattr(torch.ops.reasonalloc, name).default
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"reasonalloc::{name}", "CUDA")
    arguments = sample(name)
    before = [a.clone() for a in arguments if isinstance(a, torch.Tensor)]
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    _core.register_torch_ops()
    try:
        for _ in range(3):
            with pytest.raises(RuntimeError, match=rf"reasonalloc::{name}: a tensor is on a CUDA device.*without CUDA"):
                operator.redispatch(key, *arguments)
    finally:
        _core.register_torch_ops(operators_backend())
    for tensor, was in zip((a for a in arguments if isinstance(a, torch.Tensor)), before, strict=True):
        torch.testing.assert_close(tensor, was, rtol=0, atol=0, equal_nan=True)
    getattr(ops, name)(*arguments)  # the CPU's is as it was


def test_a_backend_is_a_capsule():
    with pytest.raises(ValueError, match="PyCapsule"):
        _core.register_torch_ops(object())


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_tensors_on_two_devices_are_refused(name):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    arguments = sample(name)
    if sum(isinstance(a, torch.Tensor) for a in arguments) < 2:
        pytest.skip("one tensor is on one device")
    with pytest.raises(RuntimeError, match="is not on the CUDA device of the others"):
        getattr(ops, name)(arguments[0].cuda(), *arguments[1:])


# ---- On a device, where what is wrong is told later ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (2, at((1, 0, 1), 19), "a page that does not exist"),
        (2, at((1, 0, 0), -1), "a page that does not exist"),
        (3, at((1, 0), 0), "lengths out of range"),
        (3, at((1, 0), 65), "lengths out of range"),
        (3, at((1, 0), -(2**31)), "lengths out of range"),
        (3, at((1, 0), 2**31 - 1), "lengths out of range"),
    ],
)
@pytest.mark.parametrize("dim", [16, 64])
def test_a_wrong_head_answers_nan(dtype, dim, index, change, message, device):
    arguments = device.there(attend_case(dtype, dim=dim)[0])
    right = device.call("attend", *arguments).cpu()
    out = device.call("attend", *replaced(arguments, index, change(arguments[index]))).cpu()
    device.wait()
    assert out[1, :, :2].isnan().all()  # its two query heads
    assert torch.equal(out[0], right[0])
    assert torch.equal(out[1, :, 2:], right[1, :, 2:])
    with pytest.raises(RuntimeError, match=f"before this one.*{message}"):
        device.call("attend", *arguments)
    assert torch.equal(device.call("attend", *arguments).cpu(), right)  # told once


@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (3, at((1, 0, 1), 19), "a page that does not exist"),
        (4, at((1, 1), 64), "lengths out of range"),
        (4, at((0, 0), -1), "lengths out of range"),
        (1, at((0, 1, 0, 5), math.nan), "NaN or infinity"),
        (2, at((1, 1, 0, 15), -math.inf), "NaN or infinity"),
    ],
)
def test_a_wrong_append_writes_nothing(tokens, index, change, message, device):
    arguments, expected = append_case(tokens=tokens)
    arguments = device.there(arguments)
    before = arguments[0].clone()
    device.call("append_", *replaced(arguments, index, change(arguments[index])))
    device.wait()
    torch.testing.assert_close(arguments[0], before, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(RuntimeError, match=f"{message}; if it was append_, it has written nothing"):
        device.call("append_", *arguments)
    device.call("append_", *arguments)
    torch.testing.assert_close(arguments[0].cpu(), expected, rtol=0, atol=0, equal_nan=True)


def test_scores_that_are_none_are_told_later(device):
    queries, keys = device.there(score_case())
    device.call("rkv_score", queries, at((1, 3), math.nan)(keys), 0.1, 0.5, 7)
    device.wait()
    with pytest.raises(RuntimeError, match=r"before this one.*NaN or infinity"):
        device.call("redundancy", keys, 0.5)
    out = device.call("redundancy", at((1, 3), math.inf)(keys), 0.5)
    device.wait()
    assert out[1].isnan().any()
    with pytest.raises(RuntimeError, match=r"before this one.*NaN or infinity"):
        device.call("redundancy", keys, 0.5)
    device.call("redundancy", keys, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [2, -1])
def test_keys_that_importance_cannot_score_are_told_later(bad, token, device):
    queries, keys = device.there(score_case())
    queries, keys = queries.abs(), at((1, token, 3), bad)(keys)  # every product with -inf is -inf
    out = device.call("importance", queries, keys, 1)
    assert out[0].isfinite().all()
    assert out[1].isnan().any() == (token >= 0)  # in the window it is no score's
    assert "NaN or infinity" in device.take_fault()


def test_a_fault_does_not_reach_the_next_test(device):
    """What the fixture's end does."""
    keys = device.there((at((1, 3), math.nan)(score_case()[1]), 0.5))
    device.call("redundancy", *keys)
    assert "NaN or infinity" in device.take_fault()
    assert device.take_fault() is None


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_checked_at_once(name, device):
    arguments = device.there(sample(name))
    with pytest.raises(RuntimeError, match=rf"reasonalloc::{name}: .* has shape "):
        device.call(name, arguments[0][0], *arguments[1:])


def test_a_refused_append_leaves_the_pages():
    arguments = broken("append_", 4, at((1, 1), 62))
    before = arguments[0].clone()
    with pytest.raises(RuntimeError, match="lengths"):
        ops.append_(*arguments)
    torch.testing.assert_close(arguments[0], before, rtol=0, atol=0, equal_nan=True)


def test_fakes_refuse_what_the_kernels_refuse():
    for name, index, change in [
        ("attend", 0, lambda q: q.double()),
        ("attend", 2, lambda t: t[:1]),
        ("append_", 2, lambda v: v[:, :, :1]),
        ("rkv_score", 4, lambda _: 4),
        ("importance", 0, lambda q: q[:5]),
        ("redundancy", 0, lambda k: k.half()),
    ]:
        arguments = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in broken(name, index, change)]
        with pytest.raises(RuntimeError):
            getattr(ops, name)(*arguments)


def test_no_gradient_flows():
    keys = torch.randn(1, 5, 4, requires_grad=True)
    out = ops.redundancy(keys)
    with pytest.warns(UserWarning, match="autograd"):
        out.sum().backward()
    assert keys.grad is None


# ---- Ownership -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps freed memory")
def test_memory_stays_flat():
    good, _, _ = attend_case()
    bad = replaced(good, 3, good[3] * 0)
    queries, keys = score_case()

    def calls(count):
        for _ in range(count):
            ops.attend(*good)
            ops.rkv_score(queries, keys)
            with pytest.raises(RuntimeError):
                ops.attend(*bad)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = calls(500)
    assert calls(7000) - before < 4096  # KiB; a result or a handle leaked by every call would be more


def test_append_is_seen_by_autograd():
    """A write counts as one: what was saved for backward is no longer valid, and leaves are not written."""
    pages = torch.zeros(4, 32 * 8)
    keys, values = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 3, 8)
    table, lengths = torch.zeros(1, 1, 1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    before = pages._version
    ops.append_(pages, keys, values, table, lengths)
    assert pages._version == before + 1
    weight = torch.ones(4, 32 * 8, requires_grad=True)
    product = (weight * pages).sum()
    ops.append_(pages, keys, values, table, lengths)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with pytest.raises(RuntimeError, match="leaf that requires grad"):
        ops.append_(weight, keys, values, table, lengths)
    assert (weight == 1).all()


def test_append_refuses_what_is_not_finite():
    pages = torch.zeros(4, 32 * 8)
    keys, values = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 3, 8)
    values[0, 0, 2, 7] = float("nan")
    table, lengths = torch.zeros(1, 1, 1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="NaN or infinity"):
        ops.append_(pages, keys, values, table, lengths)
    assert (pages == 0).all()
