"""Parts that own their settings: dealt out by Config, registered by name, borrowed with their options."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from fractions import Fraction

import caches
import models
import numpy as np
import pytest
import tiny
import torch
from test_methods import config_of, run, torch_importance

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint
from reasonalloc.lab.evaluate.accuracy import Cell
from reasonalloc.policy.gathered import H2O, Lazy, RaaS
from reasonalloc.policy.heads import HEADS, Pooled, Route, UniformHeads
from reasonalloc.policy.layers import LAYERS, Pyramid, UniformLayers, Wave
from reasonalloc.policy.layers_by_scores import Dynamic
from reasonalloc.policy.published import DKV, VATP, PyramidPublished, SnapKVPublished, VaSE
from reasonalloc.policy.schedule import Schedule
from reasonalloc.policy.scorers import RKV, SCORERS, CentredRKV, Importance, Random, Recency
from reasonalloc.policy.size import Size, parse_bytes
from reasonalloc.policy.spans import Spans


def policy_of(**settings):
    return ra.Config(**{"budget": 64, **settings}).policy()


# ---- Whose a setting is ----------------------------------------------------------------------------------------------


def test_keywords_go_to_the_parts_that_own_them():
    policy = policy_of(alpha=0.3, threshold=0.2, kernel=5, gamma=0.7, lo=0.1, hi=3.0, mu=0.5, rho=0.8, smoothing=0.25)
    assert policy.scorer == CentredRKV(0.3, 0.2, 5, smoothing=0.25)
    assert policy.layers == Wave(gamma=0.7, lo=0.1, hi=3.0, rho=0.8)  # gamma, lo and hi are those of two parts
    assert policy.heads == Route(gamma=0.7, lo=0.1, hi=3.0, mu=0.5)
    assert policy.schedule == Schedule(interval=128, window=8, keep_prompt=False, sinks=0)
    assert policy_of(method="rkv", window=6, interval=9, keep_prompt=True, sinks=3).schedule == Schedule(9, 6, True, 3)
    assert policy_of(method="random", seed=5).scorer == Random(seed=5)
    assert policy_of(method="adakv", safeguard=0.4, kernel=3).heads == Pooled(0.4)
    assert policy_of(method="pyramidkv", beta=7.0).layers == Pyramid(7.0)
    assert policy_of(method="streaming").schedule == Schedule(interval=1, sinks=4)


def test_what_every_method_is_made_of():
    made = {
        name: ra.Config(method=name, **({} if name == "full" else {"budget": 64})).policy() for name in caches.UNGATED
    }
    rkv, even = (RKV(), UniformLayers(), UniformHeads()), (UniformLayers(), UniformHeads())
    assert {name: (x.scorer, x.layers, x.heads) for name, x in made.items()} == {
        "full": rkv,
        "rkv": rkv,
        "streaming": (Recency(), *even),
        "random": (Random(), *even),
        "snapkv": (Importance(), *even),
        "pyramidkv": (Importance(), Pyramid(), UniformHeads()),
        "pyramid-rkv": (RKV(), Pyramid(), UniformHeads()),
        "adakv": (Importance(), UniformLayers(), Pooled()),
        "dynamickv": (Importance(), Dynamic(), UniformHeads()),
        "adakv-published": (SnapKVPublished(pool="max"), UniformLayers(), Pooled()),
        "snapkv-published": (SnapKVPublished(), *even),
        "pyramidkv-published": (SnapKVPublished(pool="max"), PyramidPublished(), UniformHeads()),
        "vase": (VaSE(), *even),
        "dkv": (DKV(), *even),
        "spans": (Spans(), *even),
        "vatp": (VATP(), *even),
        "h2o": (H2O(), *even),
        "lazyeviction": (Lazy(), *even),
        "raas": (RaaS(), *even),
        "reasonalloc": (CentredRKV(), Wave(), Route()),
        "reasonalloc-wave": (RKV(), Wave(), UniformHeads()),
        "reasonalloc-route": (CentredRKV(), UniformLayers(), Route()),
    }
    assert [name for name, x in made.items() if x.unlimited] == ["full"]
    assert [name for name, x in made.items() if x.needs_wave] == ["reasonalloc", "reasonalloc-wave"]
    assert [name for name, x in made.items() if x.schedule.interval != 128] == ["streaming"]


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (RKV, {"alpha": 2}, "alpha must lie between 0 and 1, got 2"),
        (RKV, {"kernel": 4}, "kernel must be odd"),
        (Importance, {"kernel": 0}, "kernel must lie"),
        (Importance, {"smoothing": 1}, "smoothing must lie"),
        (Random, {"seed": 0.5}, "seed must be a whole number"),
        (H2O, {"decay": 1.5}, "decay must lie between 0 and 1, got 1.5"),
        (H2O, {"prompt_statistics": "some"}, "prompt_statistics must be one of 'all', 'window', 'none', got 'some'"),
        (H2O, {"prompt_statistics": None}, "prompt_statistics must be one of"),
        (Lazy, {"form": "new"}, "form must be one of 'paper', 'code', got 'new'"),
        (Lazy, {"activation": 0}, "activation must lie"),
        (RaaS, {"relative": 1}, "relative must be True or False"),
        (Wave, {"gamma": 17}, "gamma must lie"),
        (Wave, {"rho": "a"}, "rho must be a number, got 'a'"),
        (Route, {"hi": 0.5}, "hi must lie"),
        (Pooled, {"safeguard": float("nan")}, "safeguard must lie"),
        (Pyramid, {"beta": None}, "beta must be a number"),
        (Schedule, {"keep_prompt": 1}, "keep_prompt must be True or False, got 1"),
        (Schedule, {"window": True}, "window must be a whole number, got True"),
        (Size, {"budget": 3, "ratio": 0.5}, "exactly one"),
    ],
)
def test_a_part_checks_its_own_settings(part, settings, message):
    with pytest.raises(ValueError, match=message):
        part(**settings)


def test_settings_of_parts_that_are_keywords_have_the_same_default():
    """The others came later, and the hashes of saved runs cover all keywords: they are options."""
    keywords = {f.name: f.default for f in dataclasses.fields(ra.Config)}
    for cls in [x for table in (SCORERS, LAYERS, HEADS) for x in table.classes.values()]:
        for f in dataclasses.fields(cls):
            assert f.name not in keywords or keywords[f.name] == f.default, (cls, f.name)


def test_statistics_of_a_policy():
    assert policy_of(method="rkv").statistics is None and ra.Config(method="full").policy().statistics is None
    wanted = policy_of(method="h2o", options={"decay": 0.8, "prompt_statistics": "none", "recent": 0.25})
    assert wanted.statistics == (2, 0.8, 1e-4, False, False) and wanted.scorer.arguments(0).recent == 0.25
    lazy = policy_of(method="lazyeviction", options={"activation": 2, "relative": True})
    assert lazy.statistics == (0, 1.0, 2.0, True, False) and not lazy.scorer.arguments(0).published_code
    code = policy_of(method="lazyeviction", options={"form": "code"})
    assert code.statistics == (2, 1.0, 1e-4, False, True) and code.scorer.arguments(0).published_code
    assert policy_of(method="reasonalloc", scorer="raas").statistics == (0, 1.0, 1e-4, False, False)


def test_a_setting_that_nobody_owns_does_nothing():
    """An ablation gives alpha to all of its cells, StreamingLLM's among them."""
    model = models.tiny()
    plain, given = (run(model, config_of("streaming", **x), new=4)[1] for x in ({}, {"alpha": 0.9, "beta": 3.0}))
    assert plain == given
    with pytest.raises(ValueError, match="alpha must lie"):
        config_of("streaming", alpha=9)


# ---- Numbers and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint8, np.array, torch.tensor])
def test_integers_of_any_kind(number):
    config = ra.Config(budget=number(64), window=number(4), interval=number(16), kernel=number(3), seed=number(7))
    assert config == ra.Config(budget=64, window=4, interval=16, kernel=3, seed=7)
    assert all(type(x) is int for x in (config.budget, config.window, config.interval, config.kernel, config.seed))


@pytest.mark.parametrize("number", [float, np.float64, np.float32, np.float16, Fraction])
def test_floats_of_any_kind(number):
    config = ra.Config(method="rkv", ratio=number(0.5), alpha=number(0.25), gamma=number(2))
    assert config == ra.Config(method="rkv", ratio=0.5, alpha=0.25, gamma=2.0)
    assert type(config.ratio) is type(config.alpha) is float
    json.dumps([config.ratio, config.alpha, config.gamma])


def test_a_cache_by_numpy_s_numbers():
    numpy = config_of("rkv", budget=np.int64(24), interval=np.int32(8), window=np.uint8(4), keep_prompt=np.bool_(True))
    assert run(models.tiny(), numpy)[1] == run(models.tiny(), config_of("rkv", keep_prompt=True))[1]


@pytest.mark.parametrize(
    "value", [np.bool_(True), np.float64(64), np.array([64]), torch.tensor(64.0), 64.0, [64], "64"]
)
def test_what_is_no_integer(value):
    with pytest.raises(ValueError, match="budget must be a whole number"):
        ra.Config(budget=value)


@pytest.mark.parametrize("value", ["9" * 400, 10**400, "1" * 30 + "GiB", 2**64])
def test_bytes_beyond_any_machine(value):
    with pytest.raises(ValueError, match=r"max_bytes must be at most 9223372036854775807|max_bytes must be a number"):
        ra.Config(max_bytes=value)
    assert parse_bytes("1.5 GiB") == 3 * 2**29


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512M", 512 * 10**6), ("512 mb", 512 * 10**6), ("512MiB", 2**29), ("512mi", 2**29), ("2 G", 2 * 10**9),
        ("0.5TiB", 2**39), ("1k", 1000), ("64 KB", 64000), ("64", 64), ("64B", 64), (64, 64),
    ],
)  # fmt: skip
def test_units_of_bytes(text, value):
    assert parse_bytes(text) == value
    assert ra.Config(max_bytes=text).max_bytes == text


@pytest.mark.parametrize("text", ["", "M", "iB", "5iB", "5 potatoes", "-5", "5MM", "5PB", True, None])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="max_bytes must be a number of bytes or like '512MiB'"):
        parse_bytes(text)


def test_names_in_any_case():
    config = ra.Config(method="SnapKV", budget=64, scorer="RKV", layers="Wave", heads="AdaKV")
    assert config.method == "snapkv" and config == ra.Config(
        method="snapkv", budget=64, scorer="RKV", layers="Wave", heads="AdaKV"
    )
    policy = config.policy()
    assert (policy.scorer, policy.layers, policy.heads) == (RKV(), Wave(), Pooled())
    assert ra.Config(method="ReasonAlloc", budget=64).resolve() == ra.Config(budget=64).resolve()
    with pytest.raises(ValueError, match=r"method 'SnapKW' is unknown \(did you mean 'snapkv'\?\)"):
        ra.Config(method="SnapKW", budget=64)


@pytest.mark.parametrize("name", ["method", "scorer", "layers", "heads"])
@pytest.mark.parametrize("value", [5, ["rkv"], b"rkv"])
def test_names_that_are_none(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a name, got"):
        ra.Config(**{"budget": 64, name: value})


def test_names_that_differ_in_case_alone(register):
    for name in ("mine", "Mine"):

        @register(name)
        @dataclass(frozen=True)
        class Mine(ra.Method):
            pass

    assert [ra.Config(method=x, budget=64).method for x in ("mine", "Mine")] == ["mine", "Mine"]
    with pytest.raises(ValueError, match="method 'MINE' is unknown"):
        ra.Config(method="MINE", budget=64)


# ---- Parts written in Python -----------------------------------------------------------------------------------------


@pytest.fixture
def value_norm(register):
    """README's example."""

    @register("value-norm")
    @dataclass(frozen=True)
    class ValueNorm(ra.Method):
        heads: str = "route"
        power: float = 1.0

        def score(self, view: ra.HeadView):
            attention = (view.queries[:, -1] @ view.keys.T * view.scale).softmax(-1).mean(0)
            return attention * view.values.norm(dim=-1) ** self.power


@pytest.mark.parametrize("method", caches.BUDGETED)
def test_a_borrowed_scorer_brings_its_options(value_norm, method):
    model = models.tiny()
    settings = {"interval": 8, "keep_prompt": False, "sinks": 0}
    plain, strong = (
        run(model, ra.Config(method=method, scorer="value-norm", budget=24, window=4, options=x, **settings))[1]
        for x in ({}, {"power": 4.0})
    )
    parts = ra.Config(method=method, budget=24).resolve()
    same = {"layers": parts.layers, "heads": parts.heads, "budget": 24, "window": 4, **settings}
    assert plain == run(model, ra.Config(method="value-norm", **same))[1]
    assert strong == run(model, ra.Config(method="value-norm", **same, options={"power": 4.0}))[1]
    assert plain != strong


def test_options_of_all_parts_and_of_none(value_norm, register):
    @register("lean")
    @dataclass(frozen=True)
    class Lean(ra.Method):
        power: int = 0
        first: int = 10

        def head_budgets(self, scores, total, config):
            return [self.first + self.power, total - self.first - self.power]

    mixed = ra.Config(method="adakv", scorer="value-norm", heads="lean", budget=24, options={"power": 2}).policy()
    assert mixed.scorer.method.power == mixed.heads.method.power == 2  # each that has it
    assert mixed.heads.method.first == 10
    with pytest.raises(
        ValueError,
        match=r"method 'adakv' with scorer 'value-norm' with heads 'lean' has no option 'powr'; it has"
        r" \['power', 'first'\]",
    ):
        ra.Config(method="adakv", scorer="value-norm", heads="lean", budget=24, options={"powr": 2})
    with pytest.raises(ValueError, match=r"method 'adakv' has no option 'power'; it has none"):
        ra.Config(method="adakv", budget=24, options={"power": 2})
    with pytest.raises(ValueError, match="has no option 'power'"):  # its heads are "route", which is no code of its own
        ra.Config(method="adakv", heads="value-norm", budget=24, options={"power": 2})


def test_a_borrowed_part_that_needs_an_option(register, tmp_path):
    @register("gated")
    @dataclass(frozen=True, kw_only=True)
    class Gated(ra.Method):
        gates: str
        files = ("gates",)

        def score(self, view):
            return view.positions * float(open(self.gates).read())

    with pytest.raises(ValueError, match=r"method 'gated' needs the file 'gates': Config\(options="):
        ra.Config(method="snapkv", scorer="gated", budget=24)
    with pytest.raises(ValueError, match="method 'gated': the file 'gates' does not exist"):
        ra.Config(method="snapkv", scorer="gated", budget=24, options={"gates": tmp_path / "none"})
    (tmp_path / "gates").write_text("-1")
    config = config_of("snapkv", scorer="gated", options={"gates": str(tmp_path / "gates")})
    assert run(models.tiny(), config, new=0)[1][0][0][0] == [*range(20), *range(46, 50)]
    ra.Config(method="snapkv", heads="gated", budget=24)  # takes no code of its, so needs no file


def test_parts_registered_by_themselves(register):
    @register("pooled-attention")
    @dataclass(frozen=True)
    class Attention(ra.Scorer):
        kernel: int = 7
        sign: int = 1

        def score(self, view):
            assert view.config.kernel == self.kernel
            return self.sign * torch_importance(view)

    @register("first-heads")
    @dataclass(frozen=True)
    class First(ra.HeadAllocator):
        more: int = 6

        def shares(self, scores, total, view):
            assert len(scores) == view.heads == 2 and view.window == 4 and view.layer in (0, 1, 2)
            return [total // 2 + self.more, total - total // 2 - self.more]

    @register("falling")
    @dataclass(frozen=True)
    class Falling(ra.LayerAllocator):
        def totals(self, claims, total, view):
            assert claims.tolist() == [1, 1, 1] and view.heads == 2
            return np.array([total // 2, total - total // 2 - 20, 20])

    model = models.tiny()
    mine, c = (run(model, config_of("snapkv", kernel=3, **x))[1] for x in ({"scorer": "pooled-attention"}, {}))
    assert mine == c
    assert run(model, config_of("snapkv", scorer="pooled-attention", options={"sign": -1}))[1] != c
    cache, _ = run(model, config_of("rkv", heads="first-heads", layers="falling"), prompt=80, new=0)
    assert cache.stats()["slots"] == [[[42, 30], [32, 20], [16, 4]]]
    cache, _ = run(model, config_of("adakv", heads="first-heads", options={"more": 0}), prompt=80, new=0)
    assert cache.stats()["slots"] == [[[24, 24]] * 3]

    @register("mine")
    @dataclass(frozen=True)
    class Mine(ra.Method):  # named by a method, one of them with a setting of the method's choice
        scorer: str = "pooled-attention"
        heads: ra.HeadAllocator = field(default_factory=lambda: First(more=2))

    cache, _ = run(model, config_of("mine"), prompt=80, new=0)
    assert cache.stats()["slots"] == [[[26, 22]] * 3]
    assert ra.Config(method="rkv", heads="mine", budget=64, options={"more": 3}).policy().heads == First(more=3)


def test_a_part_that_needs_an_option(register):
    @register("choosy")
    @dataclass(frozen=True)
    class Choosy(ra.Scorer):
        power: float

        def score(self, view):
            return view.values.norm(dim=-1) ** self.power

    with pytest.raises(ValueError, match=r"scorer 'choosy' needs the option 'power': Config\(options="):
        ra.Config(method="rkv", scorer="choosy", budget=64)
    given = policy_of(method="rkv", scorer="choosy", options={"power": 2}, smoothing=0.5)
    assert given.scorer == Choosy(2, smoothing=0.5)


def test_a_setting_of_a_part_in_python(register):
    """Its own default stays until the keyword is something else than Config's; an option always wins."""

    @register("wide")
    @dataclass(frozen=True)
    class Wide(ra.Scorer):
        kernel: int = 11

        def score(self, view):
            return view.positions

    def kernel(**settings):
        return policy_of(method="rkv", scorer="wide", **settings).scorer.kernel

    assert (kernel(), kernel(kernel=3), kernel(options={"kernel": 7})) == (11, 3, 7)


def test_a_scorer_sees_its_own_row_and_how_logits_are_computed(register):
    seen = set()

    @register("looks")
    @dataclass(frozen=True)
    class Looks(ra.Scorer):
        def score(self, view):
            seen.add((view.row, view.prompt, view.tokens, view.scale, view.softcap))
            return view.positions

    model = tiny.build("gemma2")
    for layer in model.model.layers:
        layer.self_attn.scaling, layer.self_attn.attn_logit_softcapping = 0.125, 30.0
    cache = ra.ReasonAllocCache(model, config_of("rkv", scorer="looks"))
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (40, 31)])
    for _ in range(9):
        models.step(model, cache, ids, mask)
        ids, mask = models.prompt(1, rows=2), torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    assert seen == {(row, n, n + later, 0.125, 30.0) for row, n in enumerate((40, 31)) for later in (0, 8)}


def test_a_core_part_of_another_name(register):
    @register("rkv-importance")
    @dataclass(frozen=True)
    class Heavy(RKV):
        alpha: float = 0.9

    model = models.tiny()
    named = run(model, config_of("rkv", scorer="rkv-importance"))[1]
    assert named == run(model, config_of("rkv", alpha=0.9))[1] != run(model, config_of("rkv"))[1]


def test_a_core_part_with_its_own_function(register):
    """A subclass of a part in C that overrides its function is called."""

    @register("newest")
    @dataclass(frozen=True)
    class Newest(RKV):
        def score(self, view):
            return view.positions

    @register("lopsided")
    @dataclass(frozen=True)
    class Lopsided(Route):
        def shares(self, scores, total, view):
            even = super().shares(scores, total, view)  # what C would have given
            assert even.sum() == total
            return [total - 4, 4]

    _, kept = run(models.tiny(), config_of("rkv", scorer="newest", heads="lopsided"), new=0)
    assert kept[0][0] == [list(range(6, 50)), list(range(46, 50))]


def test_wave_for_allocators_in_python(register):
    @register("mine")
    @dataclass(frozen=True)
    class Mine(ra.LayerAllocator):
        uses_wave = True

        def totals(self, claims, total, view):
            seen.append(claims.tolist())
            return Wave(gamma=1.0).totals(claims, total, view)

    seen = []
    model = models.tiny()
    profile = ra.WaveProfile((1.0, 5.0, 2.0), (0, 1, 2), fingerprint(model))
    config = config_of("rkv", layers="mine", profile=profile)
    assert config.resolve().needs_wave and config.policy().needs_wave
    cache, _ = run(model, config, prompt=80, new=0)
    assert cache.stats()["wave"] == "profile" and seen[-1] == [1, 5, 2]
    same, _ = run(model, config_of("rkv", layers="wave", gamma=1.0, profile=profile), prompt=80, new=0)
    assert cache.stats()["slots"] == same.stats()["slots"]
    cache, _ = run(model, config_of("rkv", layers="mine"), prompt=80, new=0)
    assert cache.stats()["wave"] == "measured on the first prefill" and seen[-1] != [1, 1, 1]


def test_layer_totals_by_a_rows_tokens(register):
    """An allocator in Python is asked again as a row grows; those of the library need not be."""

    @register("late")
    @dataclass(frozen=True)
    class Late(ra.LayerAllocator):
        def totals(self, claims, total, view):
            least = view.heads * view.window
            return [total // 3] * 3 if view.tokens < 50 else [total - 2 * least, least, least]

    cache, _ = run(models.tiny(), config_of("rkv", layers="late"), prompt=40, new=0)
    assert cache.cutter.totals_now.tolist() == [[48, 48, 48]]
    cache, _ = run(models.tiny(), config_of("rkv", layers="late"), prompt=40, new=20)
    assert cache.cutter.totals_now.tolist() == [[128, 8, 8]]


def test_registering_parts_that_cannot_be(register):
    for base, function in ((ra.Scorer, "score"), (ra.LayerAllocator, "totals"), (ra.HeadAllocator, "shares")):
        with pytest.raises(ValueError, match=f"has no function '{function}'"):
            register("mine")(dataclass(frozen=True)(type("Mine", (base,), {})))
    with pytest.raises(ValueError, match="scorer 'rkv' exists already: RKV of reasonalloc"):
        register("rkv")(type("RKV", (ra.Scorer,), {"score": lambda self, view: view.positions}))
    assert SCORERS["rkv"] is RKV
    with pytest.raises(ValueError, match="scorer 'rkv' exists already"):

        @register("rkv")
        @dataclass(frozen=True)
        class Mine(ra.Scorer):
            def score(self, view):
                return view.positions


@pytest.mark.parametrize(
    ("base", "function", "result", "message"),
    [
        (ra.Scorer, "score", lambda self, view: [1.0], r"scores of scorer 'bad' must have shape \[50\]"),
        (ra.Scorer, "score", lambda self, view: view.positions * np.nan, "scores of scorer 'bad' hold NaN"),
        (ra.HeadAllocator, "shares", lambda self, scores, total, view: [1, 2], "head budgets of heads 'bad' must be 2"),
        (ra.LayerAllocator, "totals", lambda self, claims, total, view: [8, 8], "totals of layers 'bad' must be 3"),
    ],
)
def test_bad_results_name_the_part(register, base, function, result, message):
    register("bad")(dataclass(frozen=True)(type("Bad", (base,), {function: result})))
    kind = {"score": "scorer", "shares": "heads", "totals": "layers"}[function]
    with pytest.raises(ValueError, match=message):
        run(models.tiny(), config_of("rkv", **{kind: "bad"}), new=0)


# ---- Saved runs ------------------------------------------------------------------------------------------------------


def test_hashes_of_saved_runs_stay():
    """Chains are found again by the hash of their settings: these are of 44b6f04."""
    assert {name: Cell("", ra.Config(**settings)).hash for name, settings in SAVED.items()} == HASHES


SAVED = {
    "default": {"budget": 256},
    "full": {"method": "full"},
    "kept": {"method": "streaming", "budget": 64, "keep_prompt": True, "sinks": 2},
    "mixed": {"method": "rkv", "ratio": 0.25, "scorer": "snapkv", "heads": "adakv", "layers": "pyramid", "gamma": 1},
    "bytes": {"method": "random", "max_bytes": "2MiB", "seed": 3, "interval": 32, "smoothing": 0.5},
}
HASHES = {
    "default": "c775833dd5894aa5",
    "full": "c7663da2bac5c4e3",
    "kept": "477ddb4ccb561936",
    "mixed": "a87ef05492003a93",
    "bytes": "7fcef9b5a6ced78f",
}
