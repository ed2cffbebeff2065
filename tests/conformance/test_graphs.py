"""Steps and cuts that are captured in a CUDA graph and replayed are those that are made one by one."""

import numpy as np
import pytest
import torch
from backends import BACKENDS, as_parameters
from graphs import Graph
from layers import RKV, ROUTE, positions, read

from reasonalloc import _core

pytestmark = pytest.mark.core
HEADS, GROUP, DIM, WINDOW = 2, 4, 64, 4
SHARES = (4, 1.0, 0.25, 2.5, 0.0, 0.0, np.array([1.7, 0.3]).tobytes())
GIVEN = (3, 1.0, 0.0, 1.0, 0.0, 0.0, np.array([12, -1]).tobytes())
DEVICES = [b for b in BACKENDS if b.module is not None]


@pytest.fixture(params=as_parameters(DEVICES))
def backend(request):
    return request.param


class Run:
    """A layer whose steps read tensors that stay where they are."""

    def __init__(self, backend, page_format, rows=3, ahead=32, pages=400, scorer="rkv"):
        self.backend, self.rows, self.scorer = backend, rows, scorer
        self.pool = backend.pool(page_format, DIM)
        self.layer = _core.Layer(self.pool, rows, HEADS, HEADS * GROUP, WINDOW, scorer, ahead)
        backend.add_pages(self.pool, pages)
        dtype = torch.float32 if page_format == "float32" else getattr(torch, page_format)
        self.q, self.k, self.v = (
            torch.zeros(rows, h, 1, DIM, dtype=dtype, device=backend.device) for h in (HEADS * GROUP, HEADS, HEADS)
        )
        self.out = torch.zeros(rows, 1, HEADS * GROUP, DIM, dtype=dtype, device=backend.device)
        self.totals, self.protect, self.route = np.full(rows, 44), np.full(rows, 3), ROUTE
        self.random = np.random.default_rng(7)

    def draw(self):
        for x in (self.q, self.k, self.v):
            x.copy_(self.backend.tensor(self.random.standard_normal(x.shape), x.dtype))

    def prompt(self, tokens):
        made = [self.backend.tensor(self.random.standard_normal((self.rows, h, tokens, DIM)), self.q.dtype)
                for h in (HEADS * GROUP, HEADS, HEADS)]  # fmt: skip
        assert self.layer.step(*made, None, 0.125) == 0

    def step(self):
        assert self.layer.step(self.q, self.k, self.v, self.out, 0.125) == 0

    def cut(self, wanted=(None, None, None)):
        assert self.layer.cut(self.totals, self.protect, (self.scorer, *RKV[1:]), self.route, *wanted) == 0

    def figures(self):
        shape = (self.rows, HEADS)
        flags, lost = np.zeros(self.rows, np.bool_), np.zeros(shape)
        before, after, budgets = (np.zeros(shape, np.int64) for _ in range(3))
        self.layer.figures(flags, before, after, budgets, lost)
        return [x.tolist() for x in (flags, before, after, budgets, lost)]

    def state(self):
        """All that the layer holds."""
        heads = [(row, head) for row in range(self.rows) for head in range(HEADS)]
        room, table = self.layer.table()
        pages = np.frombuffer(table, np.int32).reshape(-1, room)
        held = [positions(self.layer, *pair).tolist() for pair in heads]
        used = [x[: -(-len(p) // 16)].tolist() for x, p in zip(pages, held, strict=True)]
        kept = [read(self.layer, *pair, DIM, values).tobytes() for pair in heads for values in (False, True)]
        tokens = [self.layer.tokens(row) for row in range(self.rows)]
        return held, used, kept, tokens, [self.layer.columns(*pair) for pair in heads]


def prepared(run, steps, cut=False):
    arguments = (run.totals, run.protect) if cut else ()
    assert run.layer.prepare(steps, *arguments) == 0


@pytest.mark.parametrize(
    ("page_format", "scorer", "route"),
    [
        ("float32", "rkv", ROUTE), ("bfloat16", "rkv", ROUTE), ("float16", "rkv", ROUTE), ("bfloat16", "h2o", ROUTE),
        ("float32", "lazy", ROUTE), ("float32", "rkv", SHARES),
    ],
)  # fmt: skip
def test_replays_are_steps_and_cuts(backend, page_format, scorer, route):
    interval, intervals = 6, 4
    outs, figures, states = [], [], []
    for graphed in (False, True):
        run = Run(backend, page_format, scorer=scorer)
        run.route = route
        run.prompt(40)
        run.cut()  # from now on the shares lie on the device
        shown, found = [], []
        step = cut = None
        for turn in range(1, interval * intervals + 1):
            run.draw()
            due = turn % interval == 0
            if not graphed:
                run.step()
                if due:
                    run.cut()
            elif due and cut is None:
                prepared(run, 1, True)

                def both(run=run):
                    run.step()
                    run.cut()

                cut = Graph(backend, both)
                cut.replay()
                key = run.layer.generation
            elif not due and step is None:
                prepared(run, 1)
                step = Graph(backend, run.step)
                step.replay()
            else:
                prepared(run, 1, due)
                (cut if due else step).replay()
                run.layer.replayed(1)
                if due:
                    run.layer.replayed_cut(run.totals)
                    assert run.layer.generation == key
            shown.append(run.out.cpu().clone())
            if due:
                found.append(run.figures())
        outs.append(torch.stack(shown))
        figures.append(found)
        states.append(run.state())
    assert torch.equal(*outs)
    assert figures[0] == figures[1]
    assert states[0] == states[1]
    assert figures[0][-1][0] == [True] * 3 and sum(figures[0][-1][2][0]) == 44


def test_many_replays_before_they_are_counted(backend):
    runs = [Run(backend, "bfloat16") for _ in range(2)]
    for run in runs:
        run.prompt(20)
        run.draw()
    plain, graphed = runs
    for _ in range(30):
        plain.step()
    prepared(graphed, 1)
    graph = Graph(backend, graphed.step)
    graph.replay()
    prepared(graphed, 29)
    for _ in range(29):
        graph.replay()
    graphed.layer.replayed(19)
    graphed.layer.replayed(10)
    assert torch.equal(plain.out, graphed.out)
    assert plain.state() == graphed.state()


@pytest.mark.parametrize("scorer", ["rkv", "h2o"])
def test_nothing_but_launches_happens(backend, scorer):
    run = Run(backend, "bfloat16", scorer=scorer)
    run.prompt(60)
    run.step()
    run.cut()  # its scratch is there
    prepared(run, 1, True)
    before = backend.module.waits(), backend.allocations()

    def both():
        run.step()
        run.cut()

    graph = Graph(backend, both)
    graph.replay()
    for _ in range(3):
        run.figures()
        prepared(run, 1, True)
        graph.replay()
        run.layer.replayed(1)
        run.layer.replayed_cut(run.totals)
    if backend.device == "cpu":
        assert (backend.module.waits(), backend.allocations()) == before
        assert graph.nodes()[-1] == "copy" and graph.nodes().count("copy") == 1  # figures, to pinned memory
        assert any("attend_matrix" in name or "attend" in name for name in graph.nodes())
    else:
        assert backend.allocations() == before[1]


def test_totals_that_change_are_read_anew(backend):
    states = []
    for graphed in (False, True):
        run, graph = Run(backend, "float32"), None
        run.prompt(50)
        for turn, total in enumerate((90, 60, 40)):
            run.draw()
            run.totals = np.array([total, -1, total - 10])
            if not graphed:
                run.step()
                run.cut()
                continue
            prepared(run, 1, True)
            if turn:
                graph.replay()
                run.layer.replayed(1)
                run.layer.replayed_cut(run.totals)
                continue

            def both(run=run):
                run.step()
                run.cut()

            graph = Graph(backend, both)
            graph.replay()
        states.append(run.state())
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("route", "budgets"), [(SHARES, [[9 + 19, 9 + 3], [4 + 19, 4 + 3]]), (GIVEN, [[12, 28], [12, 18]])]
)
def test_what_was_sent_of_heads_stays_when_rows_go(backend, route, budgets):
    """A graph of the rows that are left can be captured at once: it need not send them."""
    states = []
    for graphed in (False, True):
        run = Run(backend, "float32")
        run.route = route
        run.prompt(40)
        run.cut()
        run.layer.reorder(np.array([2, 0]))
        run.rows, run.totals, run.protect = 2, np.array([40, 30]), np.array([5, 0])
        run.q, run.k, run.v, run.out = (x[:2].clone() for x in (run.q, run.k, run.v, run.out))

        def both(run=run):
            run.step()
            run.cut()

        run.draw()
        if graphed:
            prepared(run, 1, True)
            Graph(backend, both).replay()
        else:
            both()
        states.append((run.figures(), run.state()))
    assert states[0] == states[1]
    assert states[0][0][3] == budgets


def test_rows_that_share_pages_go_on_their_own(backend):
    states = []
    for graphed in (False, True):
        run = Run(backend, "bfloat16")
        run.prompt(21)
        run.layer.fork(0, 2)
        for turn in range(5):
            run.draw()
            if not graphed:
                run.step()
                continue
            prepared(run, 1)
            if turn == 0:
                graph = Graph(backend, run.step)
            graph.replay()
            if turn:
                run.layer.replayed(1)
        states.append((run.out.cpu().tolist(), run.state()))
    assert states[0] == states[1]


def test_pages_of_a_cut_are_asked_for_beforehand(backend):
    """A layer whose copy shares pages moves into fresh ones, and a replay asks for none."""
    run = Run(backend, "bfloat16", rows=1, pages=1)
    run.totals, run.protect = np.array([160]), np.array([0])

    def ready(*arguments):
        while missing := run.layer.prepare(*arguments):
            backend.add_pages(run.pool, missing)

    def both():
        run.step()
        run.cut()

    while missing := run.layer.reserve(20):
        backend.add_pages(run.pool, missing)
    run.prompt(20)
    ready(150)  # room for all that comes
    ready(1, run.totals, run.protect)
    graph = Graph(backend, both)
    graph.replay()
    run.figures()
    key, twin = run.layer.generation, run.layer.copy()
    for _ in range(100):  # the pages that are shared become few among its own
        run.draw()
        ready(1)
        run.step()
    ready(1, run.totals, run.protect)
    assert run.layer.generation == key
    graph.replay()
    run.layer.replayed(1)
    run.layer.replayed_cut(run.totals)
    assert run.figures()[0] == [True]
    assert run.layer.prepare(1) == 0  # no fault
    assert sum(len(positions(run.layer, 0, head)) for head in range(HEADS)) == 160
    assert [len(positions(twin, 0, head)) for head in range(HEADS)] == [21, 21]


def test_figures_of_other_rows_are_refused(backend):
    run = Run(backend, "bfloat16")
    run.prompt(60)
    run.cut()
    assert run.figures()[0] == [True] * 3
    for rows in (40, 2):
        run.layer.reorder(np.zeros(rows, np.int64))
        run.rows = rows
        with pytest.raises(ValueError, match="was not cut yet"):
            run.figures()


def test_what_was_not_prepared_is_refused(backend):
    run = Run(backend, "bfloat16")
    run.prompt(5)
    with pytest.raises(ValueError, match="1 steps were not prepared"):
        run.layer.replayed(1)
    prepared(run, 3)
    for steps in (4, 0, -1):
        with pytest.raises(ValueError, match="steps were not prepared"):
            run.layer.replayed(steps)
    run.step()  # an ordinary one takes the place of those
    with pytest.raises(ValueError, match="3 steps were not prepared"):
        run.layer.replayed(3)
    with pytest.raises(ValueError, match="other totals were prepared"):
        run.layer.replayed_cut(run.totals)
    with pytest.raises(ValueError, match="got 0 steps"):
        run.layer.prepare(0)
    with pytest.raises(ValueError, match="protect_below needs totals"):
        run.layer.prepare(1, None, run.protect)


def test_pages_are_asked_for_beforehand(backend):
    run = Run(backend, "bfloat16", pages=12)
    run.prompt(20)
    missing = run.layer.prepare(40)
    assert missing > 0
    backend.add_pages(run.pool, missing)
    prepared(run, 40)
    with pytest.raises(ValueError, match="not prepared"):
        run.layer.replayed(41)


@pytest.mark.skipif(not any(b.device == "cpu" for b in DEVICES), reason="no emulation was built")
def test_what_a_graph_cannot_hold_is_refused():
    backend = next(b for b in DEVICES if b.device == "cpu")
    run = Run(backend, "float32")
    run.prompt(50)
    prepared(run, 1, True)

    def refused(call, what="a CUDA graph cannot hold this"):
        before = run.layer.tokens(0)
        backend.module.capture_begin()
        try:
            with pytest.raises(RuntimeError, match=what):
                call()
        finally:
            graph = backend.module.capture_end()
        assert backend.module.nodes(graph) == [] and run.layer.tokens(0) == before

    begin, index = np.arange(4), np.zeros(3, np.int64)
    refused(lambda: run.layer.step(run.q, run.k, run.v, run.out, 0.125, None, begin, index))
    refused(lambda: run.prompt(2))
    refused(lambda: run.layer.prepare(1))
    run.totals = run.totals - 1
    refused(run.cut)
    run.totals = run.totals + 1
    run.route = SHARES  # the device has them not
    refused(run.cut)
    run.route = ROUTE
    budgets = np.zeros((3, HEADS), np.int64)
    refused(lambda: run.cut((budgets, np.zeros((3, HEADS)), np.zeros(3, np.bool_))))
    backend.add_pages(run.pool, 1)  # the device does not know them yet
    refused(run.step)
    prepared(run, 1, True)
    with pytest.raises(RuntimeError, match="no graph is being captured"):
        backend.module.capture_end()


def test_a_layer_in_host_memory_has_no_graphs():
    layer = _core.Layer(_core.Pool("float32", DIM), 1, HEADS, HEADS, WINDOW)
    with pytest.raises(ValueError, match="for a layer in host memory"):
        layer.prepare(1)
    with pytest.raises(ValueError, match="not prepared"):
        layer.replayed(1)
    assert layer.generation == 0


def test_bounds_alone_do_not_end_a_graph(backend):
    run = Run(backend, "bfloat16", pages=1000)
    run.totals = np.full(3, 400)
    run.prompt(200)
    run.step()
    run.cut()  # heads may have up to 400 slots, as far as the host knows
    prepared(run, 1)
    before = run.layer.generation
    for _ in range(30):  # the bounds would outgrow the room, the heads do not
        for _ in range(20):
            prepared(run, 1)
            run.step()
        run.cut()
    prepared(run, 1)
    assert run.layer.generation == before


def test_room_that_grows_ends_a_graph(backend):
    run = Run(backend, "bfloat16", ahead=8, pages=2000)
    run.prompt(20)
    prepared(run, 1)
    before = run.layer.generation
    run.step()
    for steps in (4, 400):  # the lists have room for 256 more
        prepared(run, steps)
        assert (run.layer.generation != before) == (steps == 400)
