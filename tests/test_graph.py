"""Passes of a cache as CUDA graphs: on the emulation the attention layers alone, on a GPU whole models."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import models
import numpy as np
import pytest
import torch
from backends import MODULES, Backend
from caches import cache_of, contents
from graphs import Graph

import reasonalloc as ra
from reasonalloc.hf import capture
from reasonalloc.hf import graph as graphs
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.decode import Sampling, generate
from reasonalloc.policy.gates import write_gates
from reasonalloc.store import backends

TIGHT = {"budget": 24, "interval": 8, "window": 4}
PARTS_IN_C = ["reasonalloc", "rkv", "snapkv", "random", "streaming", "full", "h2o", "lazyeviction", "raas"]
PARTS_IN_C += ["snapkv-published", "vatp", "vase", "spans", "dkv", "profile", "rlkv"]


@pytest.fixture
def settings(method, tmp_path):
    """Of a cache by a method, or by "profile": R-KV with measured head shares."""
    if method == "full":
        return {"method": method, "budget": None}
    if method == "triattention":
        calibration = ra.calibrate(models.tiny(), models.Words(), ["a text of some words " * 12], progress=False)
        return {"method": method, "calibration": calibration}
    if method == "rlkv":
        write_gates(tmp_path / "gates.tsv", np.array([[0.1, 0.9], [0.5, 0.5], [1.0, 0.0]]))
        options = {"gates": str(tmp_path / "gates.tsv"), "sparsity": 0.5, "recent": 9}
        return {"method": method, "budget": None, "interval": 1, "sinks": 3, "options": options}
    if method != "profile":
        return {"method": method}
    write_gates(tmp_path / "heads.tsv", np.array([[1.6, 0.4], [0.7, 1.3], [1.0, 1.0]]))
    return {"method": "rkv", "heads": "profile", "options": {"head_profile": str(tmp_path / "heads.tsv")}, "sinks": 3}


def made(model, prompts, **changes):
    cache = cache_of(model, **(TIGHT | changes))
    ids, mask = models.left_padded(prompts)
    with torch.no_grad():
        model(ids.to(model.device), attention_mask=mask.to(model.device), **cache_argument(cache))
    return cache


# ---- The emulation: the layers' part of a pass ----


class Layers:
    """Attention of all layers of a cache, over tensors that stay where they are."""

    def __init__(self, model, cache):
        self.model, self.cache = model, cache
        config = model.config
        heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
        shapes = [(config.num_attention_heads, size), (heads, size), (heads, size)]
        self.states = [[torch.zeros(cache.rows, h, 1, d) for h, d in shapes] for _ in cache.layers]
        self.random = torch.Generator().manual_seed(5)

    def draw(self):
        for layer in self.states:
            for x in layer:
                x.copy_(torch.randn(x.shape, generator=self.random))

    def attend(self):
        self.out = []
        for i, (q, k, v) in enumerate(self.states):
            self.cache.update(k, v, i)
            module = self.model.model.layers[i].self_attn
            self.out.append(self.cache.attend(i, module, q, k, v, None, None, {}))


@pytest.mark.parametrize("method", [*PARTS_IN_C, "triattention"])
def test_replayed_passes_are_passes(method, settings, monkeypatch):
    emulated = pytest.importorskip("reasonalloc._cuda_emulated")
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    backend, model = Backend("cuda-emulated", module=emulated), models.tiny()
    prompts = [models.prompt(n, seed=n)[0] for n in (30, 41)]
    seen = []
    for graphed in (False, True):
        cache = made(model, prompts, **settings)
        layers, shown, held = Layers(model, cache), [], {}
        for _turn in range(40):
            layers.draw()
            key = graphs.prepare(cache) if graphed else None
            if key in held:
                waits = emulated.waits()
                held[key][0].replay()
                cache.count_replay()
                assert emulated.waits() == waits
                out = held[key][1]
            elif key is None:
                layers.attend()
                out = layers.out
            else:
                cache.capturing = True
                made_graph = Graph(backend, layers.attend)
                cache.capturing = False
                made_graph.replay()
                out = layers.out
                held[key] = made_graph, out
            shown.append(torch.stack(out).clone())
        stats = cache.stats()
        figures = {name: stats[name] for name in ("budgets", "slots", "evicted", "routings", "steps", "lost_mass")}
        seen.append((torch.stack(shown), contents(cache), figures, held))
    (plain, plain_contents, plain_figures, _), (ours, our_contents, our_figures, held) = seen
    assert torch.equal(plain, ours)
    assert plain_contents == our_contents
    assert plain_figures == our_figures
    assert len(held) < 20  # most passes were replayed
    assert method == "full" or any(any(key.cut) for key in held)


def test_a_graph_ends_with_the_memory_it_refers_to(monkeypatch):
    pytest.importorskip("reasonalloc._cuda_emulated")
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    model = models.tiny()
    cache = made(model, [models.prompt(9)[0]], budget=400)
    first = graphs.prepare(cache)
    assert graphs.prepare(cache) == first
    model(models.prompt(300), **cache_argument(cache))
    assert graphs.prepare(cache) != first


def test_a_graph_ends_with_a_reset(monkeypatch):
    """What a cache begins anew with counts its memory's moves from the start too."""
    pytest.importorskip("reasonalloc._cuda_emulated")
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    model, keys = models.tiny(), []
    cache = made(model, [models.prompt(30)[0]])
    for _ in range(2):
        keys.append(graphs.prepare(cache))
        assert graphs.prepare(cache) == keys[-1]
        cache.reset()
        model(models.prompt(30), **cache_argument(cache))
    assert keys[0].generations == keys[1].generations and keys[0] != keys[1]


def test_graphs_share_a_pool_until_the_last_one_ends(monkeypatch):
    pools, numbers = [], iter(range(9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(numbers))
    monkeypatch.setattr(capture, "capture", lambda call, pool, _: (pools.append(pool), call()))
    made = capture.Graphs(torch.device("cpu"))
    assert made.capture("a", lambda: 1) == made["a"] and made.capture("b", lambda: 2)[1] == 2
    made.capture("a", lambda: 3)
    assert pools == [0, 0, 0] and made["a"][1] == 3
    made.clear()
    for _ in range(2):  # a lone graph leaves none behind while it is made anew
        made.capture("a", lambda: 4)
    assert pools[3:] == [1, 2] and list(made) == ["a"]


def test_a_capture_is_of_its_own_device_and_collects_no_garbage(monkeypatch):
    """Another device may be current, and what is collected may free memory, which ends a capture."""
    entered = []

    @contextmanager
    def entering(*what, **how):
        entered.append((*what, *how.items()))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 7)
    monkeypatch.setattr(torch.cuda, "device", entering)
    monkeypatch.setattr(torch.cuda, "graph", entering)
    monkeypatch.setattr(capture, "_stream", capture._stream.__wrapped__)
    made = capture.Graphs(torch.device("cuda", 1))
    assert made.capture("a", gc.isenabled) == ("graph", False)
    assert entered == [(torch.device("cuda", 1),), ("graph", ("pool", 7), ("stream", "stream of cuda:1"))]
    with pytest.raises(ZeroDivisionError):
        made.capture("b", lambda: 1 // 0)
    assert gc.isenabled()


class Recorded:
    """Stands in for a graph: runs the pass anew, and writes over the logits that it gave first."""

    def __init__(self, call):
        self.call, self.result = call, call()

    def replay(self):
        self.result[1].copy_(self.call()[1])


def test_passes_are_captured_and_made_anew_by_their_keys(monkeypatch):
    """Of a cache in host memory, which stands in for one on a GPU; what `prepare` says is scripted."""
    model = models.tiny()
    cache = made(model, [models.prompt(30)[0]], budget=400)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(capture, "capture", lambda call, *_: ((graph := Recorded(call)), graph.result))
    monkeypatch.setattr(cache, "count_replay", lambda: None)  # the pass has been counted
    monkeypatch.setattr(graphs, "why_not", lambda cache: "")
    a, b = object(), object()
    plain, cut = (graphs.Key(1, (x,), (a,), (0,)) for x in (False, True))
    moved, anew = plain._replace(generations=(1,)), plain._replace(layers=(b,))
    captures = []
    graph = graphs.DecodeGraph(model, cache)
    for ids in (torch.tensor([5, 5]), torch.zeros(0, 1, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"a token of each row, so 1 of them, got ids"):
            graph.step(ids)
    for key in (None, plain, plain, plain, cut, cut, moved, moved, cut, anew, anew):
        monkeypatch.setattr(graphs, "prepare", lambda cache, key=key: key)
        graph.step(torch.tensor([5]))
        captures.append(graph.captures)
    assert captures == [0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4] and graph.replays == 4
    assert list(graph._graphs) == [(False,)]  # of the layers that the cache has


def test_caches_without_graphs(monkeypatch, tmp_path):
    model = models.tiny()
    with pytest.raises(ValueError, match="the cache is empty"):
        graphs.DecodeGraph(model, cache_of(model, **TIGHT))
    with pytest.raises(ValueError, match="layer 0 lies in host memory"):
        graphs.DecodeGraph(model, made(model, [models.prompt(9)[0]]))
    pytest.importorskip("reasonalloc._cuda_emulated")
    monkeypatch.setenv(backends.VARIABLE, "cuda-emulated")
    with pytest.raises(ValueError, match="CUDA graphs need a GPU"):
        graphs.DecodeGraph(model, made(model, [models.prompt(9)[0]]))
    watched = ra.ReasonAllocCache(model, ra.Config(**TIGHT), observers=[lambda cut: None])
    model(models.prompt(30), **cache_argument(watched))
    with pytest.raises(ValueError, match="observers"):
        graphs.DecodeGraph(model, watched)
    write_gates(tmp_path / "heads.tsv", np.ones((3, 2)))
    options = {"head_profile": str(tmp_path / "heads.tsv"), "correction": 0.5}
    corrected = made(model, [models.prompt(30)[0]], heads="profile", options=options)
    with pytest.raises(ValueError, match="parts of its method in Python"):
        graphs.DecodeGraph(model, corrected)
    other = models.build("gemma3")
    with pytest.raises(ValueError, match=r"layers of transformers' own"):
        graphs.DecodeGraph(other, made(other, [models.prompt(9)[0]]))


# ---- A GPU ----


@pytest.fixture
def on_gpu(monkeypatch):
    if MODULES["_cuda"] is None or not torch.cuda.is_available():
        pytest.skip("no GPU here")
    monkeypatch.setenv(backends.VARIABLE, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("method", PARTS_IN_C)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_model_decodes_in_graphs(method, settings, rows, on_gpu):
    model = models.tiny().to("cuda")
    prompts = [models.prompt(30 + 7 * n, seed=n)[0] for n in range(rows)]
    plain, graphed = (made(model, prompts, **settings) for _ in range(2))
    graph = graphs.DecodeGraph(model, graphed)
    random = torch.Generator().manual_seed(1)
    for _ in range(60):
        ids = torch.randint(3, model.config.vocab_size, (rows, 1), generator=random).cuda()
        positions = torch.tensor([plain.ragged[0].core.tokens(row) for row in range(rows)])[:, None].cuda()
        with torch.no_grad():
            want = model(ids, position_ids=positions, **cache_argument(plain)).logits[:, -1]
        torch.testing.assert_close(graph.step(ids), want, rtol=1e-5, atol=1e-5)
    assert contents(plain)[0] == contents(graphed)[0]
    kinds = 1 if method in ("full", "rlkv") else 2  # never cut, always cut
    assert graph.replays > 30 and graph.captures >= kinds
    ours, theirs = graphed.stats(), plain.stats()
    for name in ("budgets", "slots", "evicted", "routings", "steps"):
        assert ours[name] == theirs[name], name
    graphed.reorder_cache(torch.arange(rows).flip(0))  # goes on as ever
    for _ in range(4):
        graph.step(ids)
    assert graphed.ragged[0].length == plain.ragged[0].length + 4


@pytest.mark.gpu
@pytest.mark.parametrize("method", PARTS_IN_C)
def test_chains_of_graphs_are_chains(settings, on_gpu):
    model = models.tiny().to("cuda")
    prompts = [(str(n), models.prompt(20 + 7 * n, seed=n)[0].tolist()) for n in range(6)]
    config, sampling = ra.Config(**(TIGHT | settings)), Sampling(temperature=1.0, max_new_tokens=60)
    free = {x.key: x.ids for x in generate(model, config, prompts, frozenset(), sampling)}
    stop = frozenset({free["0"][10], free["2"][20], free["5"][30]})
    want, found = (
        {x.key: (x.ids, x.finish, x.slots) for x in generate(model, config, prompts, stop, sampling, graphs=graphs)}
        for graphs in (False, True)
    )
    assert found == want


@pytest.mark.gpu
def test_replays_do_not_wait(on_gpu):
    from reasonalloc import _cuda

    model = models.tiny().to("cuda")
    cache = made(model, [models.prompt(40)[0]])
    graph, ids = graphs.DecodeGraph(model, cache), torch.full((1, 1), 5, device="cuda")
    for _ in range(60):
        graph.step(ids)
    before, replays = (_cuda.waits(), _cuda.allocations()), graph.replays
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(24):
            graph.step(ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert graph.replays == replays + 24
    assert _cuda.allocations() == before[1]
    assert np.array(cache.slots()).sum() > 0
