"""Static head shares: what they save is measured by definition, the best of them are found, caches follow them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from caches import contents
from elsewhere import Elsewhere

import reasonalloc as ra
from reasonalloc.hf.attention import AttentionSpec
from reasonalloc.hf.head_profile import STEP, best_shares, head_profile, saved
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.policy.gates import write_gates
from reasonalloc.policy.profiled import ProfiledHeads
from reasonalloc.store import backends


@pytest.mark.parametrize("sinks", [None, torch.tensor([-1.0, 0.0, 2.0, 3.0])])
@pytest.mark.parametrize(("scale", "softcap"), [(8**-0.5, None), (0.6, None), (0.6, 1.5)])
def test_what_slots_save(scale, softcap, sinks):
    random = torch.Generator().manual_seed(0)
    heads, group, n, d, prompt, window, interval = 2, 2, 90, 8, 10, 4, 24
    q, k = (torch.randn(h, n, d, generator=random) for h in (heads * group, heads))
    settings = {"alpha": 0.1, "threshold": 0.5, "kernel": 7}
    spec = AttentionSpec(scale, softcap, sinks)
    got = saved(q, k, spec, prompt, 40, window, interval, settings)
    want, cuts = np.zeros((heads, 11)), 0
    for t in range(prompt + window + interval, n - interval // 2, interval):
        for h in range(heads):
            own = slice(h * group, (h + 1) * group)
            scores = ra.score.rkv(q[own, t - window : t] * scale * d**0.5, k[h : h + 1, :t])[0].numpy()
            order = sorted(range(prompt, t - window), key=lambda i: -scores[i])
            for points in range(11):
                for j in range(t, min(n, t + interval)):
                    for g in range(group):
                        logits = (k[h, : j + 1].double() @ q[h * group + g, j].double()) * scale
                        logits = softcap * (logits / softcap).tanh() if softcap else logits
                        if sinks is not None:  # of a token that nobody keeps
                            logits = torch.cat([logits, sinks[h * group + g : h * group + g + 1].double()])
                        weights = logits.softmax(0)
                        share = weights[order[: points * STEP]].sum().item()
                        want[h, points] += share / group / (min(n, t + interval) - t)
        cuts += 1
    assert cuts == 2 and np.allclose(got, want / cuts, atol=1e-5)
    assert not saved(q[:, :30], k[:, :30], spec, prompt, 40, window, interval, settings).any()


def test_what_slots_save_on_a_device():
    """Scores are made on the host, attention where the model lies."""
    q, k = (torch.randn(h, 90, 8, device="meta") for h in (4, 2))
    with Elsewhere():
        spec = AttentionSpec(8**-0.5, 30.0, torch.zeros(4, device="meta"))
        assert saved(q, k, spec, 10, 40, 4, 24, {"alpha": 0.1, "threshold": 0.5, "kernel": 7}).shape == (2, 11)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_shares_are_the_best(seed):
    random = np.random.default_rng(seed)
    gains = -np.sort(-random.random((3, 12)) * [[1], [3], [0.5]], 1)  # concave curves
    curves = np.concatenate([np.zeros((3, 1)), gains.cumsum(1)], 1)
    slots, lo, hi = 4 * STEP, 0.25, 2.5
    got = best_shares(curves, slots, lo, hi) * 4
    choices = [x for x in itertools.product(range(1, 11), repeat=3) if sum(x) == 12]
    best = max(sum(curves[h, x[h]] for h in range(3)) for x in choices)
    assert got.sum() == pytest.approx(12) and (got >= 1).all() and (got <= 10).all()
    assert sum(curves[h, round(got[h])] for h in range(3)) == pytest.approx(best)


def test_a_dent_in_a_curve_is_looked_across():
    """Of the first head's next slots it takes two steps to save anything, and then more than the other's two."""
    curves = np.array([[0, 5, 5, 13, 13.5], [0, 5, 8, 10.5, 12]])
    assert best_shares(curves, 2 * STEP, 0.5, 2).tolist() == [1.5, 0.5]


def test_a_model_and_a_cache(tmp_path):
    model, tokenizer = models.tiny(), models.Words()
    shares = head_profile(
        model, tokenizer, ["one two three", "four"], slots=16, window=4, interval=16, max_new_tokens=60, progress=False
    )
    layers, heads = len(model.model.layers), model.config.num_key_value_heads
    assert shares.shape == (layers, heads) and np.allclose(shares.mean(1), 1) and (shares >= 0.25 - 1e-9).all()
    shares[:] = np.array([[1.6, 0.4]] * layers)[:, :heads]
    write_gates(tmp_path / "shares.tsv", shares)
    options = {"head_profile": str(tmp_path / "shares.tsv")}
    config = ra.Config(
        method="rkv", heads="profile", budget=32, window=4, interval=8, keep_prompt=True, options=options
    )
    cache = ra.ReasonAllocCache(model, config)
    for i in range(60):
        models.step(model, cache, models.prompt(12 if i == 0 else 1, seed=i))
    for budgets in cache.stats()["budgets"][0]:
        spared = 12 + 4
        assert sum(budgets) == 64 and budgets == (spared + ra.allocate.robustify([1.6, 0.4], 32, 1, 0.25, 2.5)).tolist()
        assert min(budgets) >= spared
    before = Cell("x", config).hash
    write_gates(tmp_path / "shares.tsv", shares[:, ::-1])
    assert Cell("x", config).hash != before  # what a file says is part of a cell


class InPython(ProfiledHeads):
    """The form that is in Python."""

    def shares(self, scores, total, view):
        return super().shares(scores, total, view)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "rkv", "keep_prompt": True},
        {"method": "rkv", "sinks": 3},
        {"method": "reasonalloc-wave", "keep_prompt": True, "budget": 24},  # layers with no room for prompt and window
        {"method": "reasonalloc-wave", "recall": True, "keep_prompt": True},
        {"method": "dynamickv", "keep_prompt": True},
    ],
    ids=["prompt", "sinks", "wave", "recall", "two-phases"],
)
def test_a_cache_in_c_is_one_in_python(settings, tmp_path, monkeypatch):
    """Rows with prompts of their own lengths, side by side; heads lose prompt tokens where the prompt does not fit."""
    model, path, caches = models.tiny(), str(tmp_path / "shares.tsv"), []
    write_gates(path, np.array([[1.6, 0.4], [0.3, 1.7], [1.0, 1.0]]))
    ids, mask = models.left_padded([models.prompt(n, seed=n)[0] for n in (9, 21, 33)])
    config = ra.Config(**{"budget": 30, "window": 4, "interval": 6, "heads": "profile"} | settings,
                       options={"head_profile": path})  # fmt: skip
    ways = [("cpu", ProfiledHeads), ("cpu", InPython)]
    if "recall" not in settings:
        ways += [("cuda-emulated", ProfiledHeads), ("cuda-emulated", InPython)]
    for backend, heads in ways:
        if backend != "cpu":
            pytest.importorskip("reasonalloc._cuda_emulated")
        monkeypatch.setenv(backends.VARIABLE, backend)
        cache = ra.ReasonAllocCache(model, config, policy=replace(config.policy(), heads=heads(path)))
        assert cache.policy.heads.in_python == (heads is InPython)
        own, every = mask, []
        for turn in range(40):
            models.step(model, cache, ids if turn == 0 else models.prompt(1, rows=3, seed=turn), own)
            own = torch.cat([own, torch.ones(3, 1, dtype=own.dtype)], 1)
            every.append(cache.stats()["budgets"])
        caches.append((contents(cache)[0], cache.stats()["slots"], every))
    assert all(x == caches[0] for x in caches)
    assert cache.stats()["evicted"] > 0


def test_a_correction_stays_in_python(tmp_path):
    heads = ProfiledHeads(str(tmp_path), correction=0.25)
    assert heads.in_python and not ProfiledHeads(str(tmp_path)).in_python
    with pytest.raises(ValueError, match="is not fitted to a model"):
        ProfiledHeads(str(tmp_path)).arguments()


def test_shares_of_a_calibration(tmp_path):
    """Measured, saved and loaded; a cache follows them as it follows a file of them."""
    model, tokenizer, texts = models.tiny(), models.Words(), ["one two three " * 8, "four five six " * 9]
    calibration = ra.calibrate(model, tokenizer, texts, for_="heads", slots=16, progress=False)
    want = head_profile(model, tokenizer, texts, slots=16, progress=False)
    got = np.stack([x.head_share.numpy() for x in calibration.layers.values()])
    assert calibration.holds == ("heads",) and np.allclose(got, want) and calibration.source["slots"] == 16
    shares = [[1.6, 0.4], [0.3, 1.7], [1.0, 1.0]]
    layers = {
        i: replace(x, head_share=torch.tensor(own))
        for (i, x), own in zip(calibration.layers.items(), shares, strict=True)
    }
    replace(calibration, layers=layers).save(tmp_path / "heads.safetensors")
    write_gates(tmp_path / "heads.tsv", np.array(shares))
    common, budgets = {"method": "rkv", "heads": "profile", "budget": 32, "window": 4, "interval": 8}, []
    for own in (
        {"calibration": str(tmp_path / "heads.safetensors")},
        {"options": {"head_profile": str(tmp_path / "heads.tsv")}},
    ):
        cache = ra.ReasonAllocCache(model, ra.Config(**common, **own))
        models.step(model, cache, models.prompt(60))
        budgets.append(cache.stats()["budgets"])
    assert budgets[0] == budgets[1] and len(set(map(tuple, budgets[0][0]))) == 3
    other = models.build("llama", seed=9)
    with pytest.raises(ValueError, match=r"of another model.*other weights"):
        ra.ReasonAllocCache(other, ra.Config(**common, calibration=str(tmp_path / "heads.safetensors")))
    queries = ra.calibrate(model, tokenizer, texts, for_="queries", progress=False)
    with pytest.raises(ValueError, match=r"a calibration with heads.*holds queries"):
        ra.ReasonAllocCache(model, ra.Config(**common, calibration=queries))
    with pytest.raises(ValueError, match="slots must be at least 4, got 3"):
        ra.calibrate(model, tokenizer, texts, for_="heads", slots=3)


def test_what_is_refused(tmp_path):
    model = models.tiny()
    common = {"method": "rkv", "heads": "profile", "budget": 32}
    with pytest.raises(ValueError, match="needs the file 'head_profile'"):
        ra.ReasonAllocCache(model, ra.Config(**common))
    with pytest.raises(ValueError, match="head_profile must be the name of a file, got 5"):
        ra.Config(**common, options={"head_profile": 5})
    path = tmp_path / "shares.tsv"
    write_gates(path, np.ones((1, 2)))
    with pytest.raises(ValueError, match="shares of 1 layers x 2 KV heads, the model has"):
        ra.ReasonAllocCache(model, ra.Config(**common, options={"head_profile": str(path)}))
    write_gates(path, -np.ones((len(model.model.layers), model.config.num_key_value_heads)))
    with pytest.raises(ValueError, match="must not be below 0"):
        ra.ReasonAllocCache(model, ra.Config(**common, options={"head_profile": str(path)}))
    with pytest.raises(ValueError, match="1 to 8 prompts, got 0"):
        head_profile(model, None, [], slots=8)
    with pytest.raises(ValueError, match="slots must be at least 4"):
        head_profile(model, None, ["a"], slots=1)


def test_a_correction_by_online_claims(tmp_path):
    """Shares times a power of the heads' claims, both by definition, with a prompt kept that claims nothing."""
    model = models.tiny()
    layers, heads, prompt, window, budget = len(model.model.layers), model.config.num_key_value_heads, 12, 4, 32
    table = np.array([[1.3, 0.7]] * layers)[:, :heads]
    write_gates(tmp_path / "shares.tsv", table)
    seen, found = [], {}
    for correction in (0.0, 0.5, 2.0):
        options = {"head_profile": str(tmp_path / "shares.tsv"), "correction": correction}
        config = ra.Config(
            method="rkv", scorer="rkv-centred", heads="profile", budget=budget, window=window, interval=8,
            keep_prompt=True, options=options,
        )  # fmt: skip
        cache = ra.ReasonAllocCache(model, config, observers=[seen.append])
        seen.clear()
        for i in range(60):
            models.step(model, cache, models.prompt(prompt if i == 0 else 1, seed=i))
        rest = budget * heads - heads * (prompt + window)
        for cut in seen:
            chain = [s[p[: len(s)] >= prompt] for p, s in zip(cut.positions, cut.scores, strict=True)]
            best = np.sort(np.concatenate(chain))[::-1][:rest]
            claims = np.array([(x >= best[-1]).sum() for x in chain])
            want = ra.allocate.robustify(table[cut.layer] * claims**correction, rest, 1.0, 0.25, 2.5)
            assert cut.budgets.tolist() == (prompt + window + want).tolist()
        found[correction] = [x.budgets.tolist() for x in seen]
        assert len(found[correction]) >= 3 * layers
    assert len({str(x) for x in found.values()}) == 3
    with pytest.raises(ValueError, match="correction must lie between 0"):
        ra.Config(method="rkv", heads="profile", budget=32, options={"correction": -1})


def test_heads_of_the_routing_have_settings_of_their_own():
    plain = ra.Config(method="reasonalloc", budget=64, gamma=0.7, lo=0.1).policy()
    assert plain.heads.arguments() == ("route", 0.7, 0.1, 2.0, 0.25, 0.0, b"")
    own = {"head_gamma": 1.5, "head_lo": 0.0, "head_hi": 3.0}
    policy = ra.Config(method="reasonalloc", budget=64, gamma=0.7, lo=0.1, options=own).policy()
    assert policy.heads.arguments() == ("route", 1.5, 0.0, 3.0, 0.25, 0.0, b"")
    assert policy.layers == plain.layers
    with pytest.raises(ValueError, match="head_hi must lie between 1"):
        ra.Config(method="reasonalloc", budget=64, options={"head_hi": 0.5})
