"""Every method, every mixture of parts, and methods of one's own."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import caches
import models
import numpy as np
import oracle
import pytest
import torch

import reasonalloc as ra
from reasonalloc.allocate import HEADS, LAYERS
from reasonalloc.hf.compat import cache_argument
from reasonalloc.methods import METHODS
from reasonalloc.score import SCORERS

SETTINGS = {"budget": 24, "interval": 8, "window": 4}
UNCALIBRATED = [x for x in SCORERS if x != "triattention"]  # which tests/test_triattention.py has


def config_of(method, **changes):
    options = {"method": method, **SETTINGS, **changes}
    if method == "full":
        options.pop("budget")
    if method == "streaming":
        options.pop("interval")
    return ra.Config(**options)


def run(model, config, prompt=50, new=24, rows=1):
    """Forced tokens -> the cache, and the positions after every step."""
    cache, kept = ra.ReasonAllocCache(model, config), []
    for i in range(new + 1):
        models.step(model, cache, models.prompt(prompt if i == 0 else 1, rows=rows, seed=i))
        kept.append([[p.tolist() for p in cache.positions(i, r)] for i in cache.stats()["layers"] for r in range(rows)])
    return cache, kept


# ---- The table -------------------------------------------------------------------------------------------------------


def test_the_table_has_the_issues_methods():
    assert {
        "full",
        "streaming",
        "snapkv",
        "rkv",
        "pyramidkv",
        "pyramid-rkv",
        "adakv",
        "random",
        "reasonalloc",
        "reasonalloc-wave",
        "reasonalloc-route",
    } <= set(ra.methods())
    assert ra.methods() == sorted(ra.methods())
    for name in ra.methods():
        method = METHODS[name]
        assert method.__doc__
        assert method.name == name


@pytest.mark.parametrize("method", caches.UNGATED)
def test_each_generates_inside_its_budget_and_the_same_again(method):
    model, outputs = models.tiny(), []
    for _ in range(2):
        cache = ra.ReasonAllocCache(model, config_of(method))
        tokens = model.generate(
            models.prompt(50, rows=2),
            attention_mask=torch.ones(2, 50, dtype=torch.long),
            max_new_tokens=30,
            do_sample=False,
            **cache_argument(cache),
        )
        kept = [[p.tolist() for p in cache.positions(i, r)] for i in range(3) for r in (0, 1)]
        outputs.append((tokens.tolist(), kept, cache.stats()["lost_mass"]))
        if method != "full":
            assert np.array(cache.stats()["slots"]).mean() <= 24 + cache.policy.schedule.interval
            assert cache.stats()["evicted"]
    assert outputs[0] == outputs[1]
    assert torch.tensor(outputs[0][0]).shape == (2, 80)


@pytest.mark.parametrize(("scorer", "layers", "heads"), list(itertools.product(UNCALIBRATED, LAYERS, HEADS)))
def test_parts_mix(scorer, layers, heads):
    config = config_of("rkv", scorer=scorer, layers=layers, heads=heads)
    method = config.resolve()
    assert (method.scorer, method.layers, method.heads) == (scorer, layers, heads)
    cache, _ = run(models.tiny(), config, new=9)
    figures = cache.stats()
    assert figures["evicted"]
    slots, budgets = np.array(figures["slots"])[0], np.array(figures["budgets"])[0]
    assert budgets.sum() == 24 * 6
    if heads == "uniform":
        assert (np.ptp(budgets, 1) <= 1).all()
    if layers == "uniform":
        assert (budgets.sum(1) == 48).all()
    assert (slots >= 4).all()


def test_parts_of_other_methods_by_name():
    for name in caches.UNGATED:
        method = ra.Config(method="rkv", budget=64, scorer=name, layers=name, heads=name).resolve()
        other = METHODS[name]()
        assert (method.scorer, method.layers, method.heads) == (other.scorer, other.layers, other.heads)
        assert method.interval == 128
        assert not method.unlimited


def test_mixtures_are_the_methods_made_of_them():
    model = models.tiny()
    for name, parts in [
        ("snapkv", {"scorer": "snapkv"}),
        ("pyramidkv", {"scorer": "importance", "layers": "pyramid"}),
        ("pyramid-rkv", {"layers": "pyramidkv"}),
        ("adakv", {"scorer": "snapkv", "heads": "adakv"}),
        ("reasonalloc-route", {"scorer": "rkv-centred", "heads": "route"}),
        ("reasonalloc-wave", {"layers": "wave"}),
        ("reasonalloc", {"scorer": "reasonalloc", "layers": "reasonalloc", "heads": "reasonalloc"}),
        ("random", {"scorer": "random", "keep_prompt": True}),
    ]:
        _, mixed = run(model, config_of("rkv", **parts), new=9)
        _, named = run(model, config_of(name), new=9)
        assert mixed == named, name


def test_the_configs_numbers_matter():
    model = models.tiny("llama-mha")
    _, plain = run(model, config_of("reasonalloc-route"), new=0)
    for change in ({"alpha": 0.9}, {"threshold": 0.95}, {"kernel": 1}, {"window": 6}, {"gamma": 2.0}):
        _, other = run(model, config_of("reasonalloc-route", **change), new=0)
        assert other != plain, change
    _, random = run(model, config_of("random", keep_prompt=False), new=0)
    _, seeded = run(model, config_of("random", keep_prompt=False, seed=1), new=0)
    assert random != seeded


# ---- What single methods keep ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sinks", [None, 0, 2, 10])
def test_streaming_keeps_sinks_and_the_newest_exactly(sinks):
    cache, kept = run(models.tiny(), config_of("streaming", sinks=sinks), prompt=30, new=30)
    first = 4 if sinks is None else sinks
    for step, heads in enumerate(kept):
        seen = 30 + step
        expected = [*range(first), *range(seen - 24 + first, seen)]
        assert all(head == expected for layer in heads for head in layer)
    assert cache.stats()["routings"] == 31


def test_random_keeps_the_prompt():
    _, kept = run(models.tiny(), config_of("random"), prompt=14, new=60)
    for heads in kept:
        for head in itertools.chain(*heads):
            assert head[:14] == list(range(14))
    later = [head for head in itertools.chain(*kept[-1])]
    assert len({tuple(h) for h in later}) == 6  # every head and layer its own choice
    assert any(p not in later[0] for p in range(14, 70))


def test_random_is_fair():
    """Over seeds every older token stays about as often as another."""
    model, counts = models.tiny(), np.zeros(60)
    for seed in range(25):
        _, kept = run(model, config_of("random", keep_prompt=False, seed=seed), prompt=60, new=0)
        for head in itertools.chain(*kept[0]):
            counts[head] += 1
    assert (counts[56:] == 150).all()
    assert np.abs(counts[:56] / 150 - 20 / 56).max() < 0.2
    assert abs(counts[:28].mean() - counts[28:56].mean()) < 15


@pytest.mark.parametrize("heads", ["route", "pooled"])
@pytest.mark.parametrize("scorer", ["rkv", "rkv-centred", "importance", "random"])
def test_routing_takes_no_kept_prompt_from_a_head(heads, scorer):
    """Prompt and window fit in the mean head's budget, so every head has them; C and Python agree on the rest."""
    config = config_of("rkv", scorer=scorer, heads=heads, keep_prompt=True, lo=0.0, mu=0.0, safeguard=0.0)
    model = models.tiny("llama-mha")
    cache, kept = run(model, config, prompt=12, new=60)
    counts = {len(head) for head in kept[-1][-1]}
    assert len(counts) > 1  # heads did get budgets of their own
    for head in itertools.chain(*kept[-1]):
        assert head[:12] == list(range(12)) and head[-4:] == list(range(68, 72))
    traced = ra.ReasonAllocCache(model, config, record=True)  # which routes in Python
    for i in range(61):
        models.step(model, traced, models.prompt(12 if i == 0 else 1, seed=i))
    assert np.array_equal(traced.slots(), cache.slots())


def test_keep_prompt_evicts_the_prompt_last():
    _, kept = run(models.tiny(), config_of("rkv", keep_prompt=True), prompt=12, new=60)
    assert all(head[:12] == list(range(12)) for head in itertools.chain(*kept[-1]))
    _, kept = run(models.tiny(), config_of("rkv", keep_prompt=True), prompt=40, new=60)  # longer than the budget
    for head in itertools.chain(*kept[-1]):
        assert sum(p < 40 for p in head) == 20
        assert head[-4:] == [96, 97, 98, 99] or len(head) > 24


@pytest.mark.parametrize("method", ["rkv", "reasonalloc", "snapkv", "adakv", "pyramidkv"])
def test_the_window_always_stays(method):
    _, kept = run(models.tiny(), config_of(method), prompt=50, new=24)
    for step, heads in enumerate(kept):
        for head in itertools.chain(*heads):
            assert head[-4:] == list(range(46 + step, 50 + step))


# ---- Methods of one's own --------------------------------------------------------------------------------------------


def torch_importance(view):
    """SnapKV's score written with torch."""
    keys = view.keys[: len(view.positions) - view.window]
    logits = (view.queries @ keys.T / keys.shape[1] ** 0.5).amax(0)
    mass = logits.softmax(-1).mean(0)
    kernel = view.config.kernel
    return torch.nn.functional.max_pool1d(mass[None, None], kernel, stride=1, padding=kernel // 2)[0, 0]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_same_score_in_python_keeps_the_same_tokens(register, name):
    @register("mine")
    @dataclass(frozen=True)
    class Mine(ra.Method):
        def score(self, view):
            return torch_importance(view)

    model = models.tiny(name)
    cache, given = run(model, config_of("mine"), rows=2)
    other, expected = run(model, config_of("snapkv"), rows=2)
    assert given == expected
    assert cache.stats()["evicted"] == other.stats()["evicted"]
    assert cache.stats()["lost_mass"] == pytest.approx(other.stats()["lost_mass"], rel=1e-5)
    for heads in ("route", "pooled"):
        assert run(model, config_of("mine", heads=heads))[1] == run(model, config_of("snapkv", heads=heads))[1]
    assert run(model, config_of("rkv", scorer="mine"))[1] == run(model, config_of("snapkv"))[1]


def test_a_score_in_numpy(register):
    """Longest values first, as an array of all tokens, float64."""

    @register("norms")
    @dataclass(frozen=True)
    class Norms(ra.Method):
        interval: int = 8

        def score(self, view):
            assert view.values.shape == (len(view.positions), 8)
            return np.linalg.norm(view.values.numpy().astype(np.float64), axis=1)

    model = models.tiny()
    cache = ra.ReasonAllocCache(model, ra.Config(method="norms", budget=24, window=4))
    models.step(model, cache, models.prompt(50))
    full = ra.ReasonAllocCache(model, ra.Config(method="full"))
    models.step(model, full, models.prompt(50))
    values = np.zeros((50, 8), np.float32)
    full.ragged[0].core.read(0, 1, True, values)
    best = oracle.select(np.linalg.norm(values.astype(np.float64), axis=1)[:46].astype(np.float32), 20)
    assert cache.positions(0)[1].tolist() == [*best, 46, 47, 48, 49]


@pytest.mark.parametrize(
    "kind",
    [
        list,
        np.array,
        torch.tensor,
        lambda x: torch.tensor(x).double(),
        lambda x: torch.tensor(x).bfloat16(),
        lambda x: torch.tensor(x, requires_grad=True),
    ],
)
def test_what_a_score_may_be(register, kind):
    @register("mine")
    @dataclass(frozen=True)
    class Mine(ra.Method):
        def score(self, view):
            return kind([float(p % 7) for p in view.positions])

    _, kept = run(models.tiny(), config_of("mine"), new=0)
    older = sorted(range(46), key=lambda p: (p % 7, p))[-20:]
    assert all(head == [*sorted(older), 46, 47, 48, 49] for head in itertools.chain(*kept[0]))


def test_what_a_scorer_sees(register):
    seen = []

    @register("mine")
    @dataclass(frozen=True)
    class Mine(ra.Method):
        def score(self, view):
            seen.append(
                (
                    view.layer,
                    view.row,
                    view.head,
                    view.prompt,
                    view.window,
                    tuple(view.queries.shape),
                    tuple(view.keys.shape),
                    tuple(view.values.shape),
                    view.positions.tolist(),
                )
            )
            assert view.config.method == "mine"
            assert view.keys.dtype == view.queries.dtype == torch.float32
            return -view.positions

    model = models.tiny("llama", torch.bfloat16)
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (40, 30)])
    cache = ra.ReasonAllocCache(model, config_of("mine"))
    models.step(model, cache, ids, mask)
    cache.slots()  # a look at it ends the prompt of the shorter row
    assert len(seen) == 3 * 2 * 2
    assert sorted(x[:3] for x in seen) == [(i, r, h) for i in range(3) for r in (0, 1) for h in (0, 1)]
    for _, row, _, prompt, window, queries, keys, values, positions in seen:
        n = (40, 30)[row]
        assert (prompt, window, queries, keys, values) == (n, 4, (2, 4, 8), (n, 8), (n, 8))
        assert positions == list(range(n))


def test_allocators_of_ones_own(register):
    @register("mine")
    @dataclass(frozen=True)
    class Mine(ra.Method):
        interval: int = 8

        def head_budgets(self, scores, total, config):
            assert all(s.dtype == np.float32 for s in scores)
            return [total - 10, 10]

        def layer_totals(self, demand, total, heads, config):
            assert demand.tolist() == [1, 1, 1]
            return torch.tensor([total // 2, total // 4, total - total // 2 - total // 4])

    cache, _ = run(models.tiny(), ra.Config(method="mine", budget=24, window=4), prompt=80, new=0)
    assert cache.stats()["slots"] == [[[62, 10], [26, 10], [26, 10]]]
    borrowed, _ = run(models.tiny(), config_of("rkv", heads="mine"), prompt=80, new=0)
    assert borrowed.stats()["slots"] == [[[38, 10]] * 3]


def test_options_and_files(register, tmp_path):
    @register("mine")
    @dataclass(frozen=True)
    class Mine(ra.Method):
        gates: str = None
        strength: float = 2.0
        files: ClassVar[tuple[str, ...]] = ("gates",)

    @register("strict")
    @dataclass(frozen=True, kw_only=True)
    class Strict(ra.Method):
        gates: str
        files: ClassVar[tuple[str, ...]] = ("gates",)

    path = tmp_path / "gates.tsv"
    with pytest.raises(ValueError, match=r"method 'strict' needs the file 'gates': Config\(options="):
        ra.Config(method="strict", budget=64)
    with pytest.raises(ValueError, match="method 'strict': the file 'gates' does not exist"):
        ra.Config(method="strict", budget=64, options={"gates": str(path)})
    with pytest.raises(ValueError, match=r"has no option 'gate'; it has .*gates"):
        ra.Config(method="strict", budget=64, options={"gate": str(path)})
    path.write_text("1\n")
    assert ra.Config(method="strict", budget=64, options={"gates": str(path)}).resolve().gates == str(path)
    assert ra.Config(method="strict", budget=64, options={"gates": path}).resolve().gates == path
    mine = ra.Config(method="mine", budget=64, options={"strength": 3.0}, heads="route", scorer="recency").resolve()
    assert (mine.strength, mine.heads, mine.scorer) == (3.0, "route", "recency")


def test_registering_again_replaces_the_same_class(register):
    """A notebook cell that is run twice."""
    for interval in (8, 16):

        @register("mine")
        @dataclass(frozen=True)
        class Mine(ra.Method):
            pass

        Mine.interval = interval
    assert "mine" in ra.methods()
