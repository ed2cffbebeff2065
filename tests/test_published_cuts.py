"""Our scorers and allocators against what published code computed of a prompt (tests/published/make_cuts.py)."""

import json
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from layers import cut, positions, scores, step
from published.seeded import prompt, prompts

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.allocate import HEADS
from reasonalloc.policy.view import RowView

pytestmark = pytest.mark.core
FOLDER = Path(__file__).parent / "published"


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def states(wanted):
    return prompt(*(wanted[x] for x in ("seed", "query_heads", "heads", "tokens", "dim")))


class Layer:
    """A layer that was given a prompt, and is scored and cut by a policy's parts."""

    def __init__(self, policy, queries, keys):
        self.policy, self.heads, dim = policy, keys.shape[1], keys.shape[3]
        self.arguments = policy.scorer.arguments(0)
        self.pool = _core.Pool("float32", dim)
        self.layer = _core.Layer(
            self.pool, 1, self.heads, queries.shape[1], policy.schedule.window, policy.core_scorer, 0, policy.statistics
        )
        step(self.pool, self.layer, queries, keys, torch.zeros_like(keys))
        self.older = keys.shape[2] - policy.schedule.window

    def scores(self):
        """[H, older]."""
        out = np.zeros((self.heads, self.older), np.float32)
        scores(self.layer, 0, self.arguments, out.reshape(-1))
        return out

    def cut(self, total):
        """Slots and positions of each head afterwards."""
        heads, *settings = self.policy.heads.arguments()[:6]
        budgets, _, _ = cut(
            self.pool, self.layer, self.heads, [total], score=self.arguments, route=(HEADS[heads], *settings)
        )
        return budgets[0].tolist(), [positions(self.layer, 0, h).tolist() for h in range(self.heads)]


def assert_kept_alike(found, code, scores):
    """The same positions, but for tokens of equal scores, of which torch.topk takes some and ours the newest.

    Where the maximum of neighbours is the score, many are equal. scores: [older].
    """
    older = len(scores)
    assert [x for x in found if x >= older] == [x for x in code if x >= older]
    ours, theirs = ([x for x in each if x < older] for each in (found, code))
    tau = min(scores[x] for x in theirs)
    assert [x for x in ours if scores[x] > tau] == [x for x in theirs if scores[x] > tau]
    tied = [x for x in range(older) if scores[x] == tau]
    left = len(theirs) - sum(scores[x] > tau for x in theirs)
    assert [x for x in ours if x in tied] == tied[-left:]
    assert len(ours) == len(theirs) and set(theirs) <= set(ours) | set(tied)


# ---- R-KV ------------------------------------------------------------------------------------------------------------


def test_rkv(isa):
    """R1KV at its first cut, by the layer and by `ra.score.rkv`. The threshold of 0.5 is its default."""
    wanted = read("rkv")
    window, alpha = wanted["window_size"], wanted["mix_lambda"]
    queries, keys = states(wanted)
    policy = ra.Config(method="rkv", budget=wanted["budget"], window=window, alpha=alpha).policy()
    layer = Layer(policy, queries, keys)
    for found in (layer.scores(), ra.score.rkv(queries[0, :, -window:], keys[0], alpha=alpha).numpy()):
        np.testing.assert_allclose(found, wanted["scores"], rtol=1e-5, atol=1e-8)
    assert layer.cut(layer.heads * wanted["budget"]) == ([wanted["budget"]] * layer.heads, wanted["kept"])


def test_rkv_s_case_says_something():
    """Keys that are alike, and some that are like no other; none so near to the threshold that rounding decides."""
    for keys in states(read("rkv"))[1][0]:
        alike = (oracle.cosines(keys) > 0.5).sum(1)
        assert 0 < (alike == 0).sum() < len(keys) / 4 and alike.max() > 10
        assert oracle.redundancy_margin(keys) > 1e-5


# ---- SnapKV ----------------------------------------------------------------------------------------------------------


def snapkv(wanted, pooling):
    options = {"pool": pooling.removesuffix("pool"), "width": wanted[pooling]["kernel_size"]}
    size = {"budget": wanted["max_capacity_prompt"], "window": wanted["window_size"]}
    return ra.Config(method="snapkv-published", options=options, **size).policy()


@pytest.mark.parametrize("pooling", ["avgpool", "maxpool"])
def test_snapkv(isa, pooling):
    """For each query head, on keys repeated for it, as the code has it; it sums over the window, ours is the mean."""
    wanted = read("snapkv")
    queries, keys = states(wanted)
    heads, budget = queries.shape[1], wanted["max_capacity_prompt"]
    layer = Layer(snapkv(wanted, pooling), queries, keys.repeat_interleave(heads // keys.shape[1], 1))
    np.testing.assert_allclose(layer.scores() * wanted["window_size"], wanted[pooling]["scores"], rtol=1e-5)
    budgets, found = layer.cut(heads * budget)
    assert budgets == [budget] * heads
    for each in zip(found, wanted[pooling]["kept"], wanted[pooling]["scores"], strict=True):
        assert_kept_alike(*each)


def test_snapkv_of_a_group(isa):
    """Where ours differs, knowingly: a KV head is cut once, by the mean of the code's scores over its query heads."""
    wanted = read("snapkv")
    layer = Layer(snapkv(wanted, "avgpool"), *states(wanted))
    mean = np.array(wanted["avgpool"]["scores"]).reshape(layer.heads, -1, layer.older).mean(1)
    np.testing.assert_allclose(layer.scores() * wanted["window_size"], mean, rtol=1e-5)
    window, budget = wanted["window_size"], wanted["max_capacity_prompt"]
    best = np.argsort(-mean)[:, : budget - window]
    kept = [sorted([*x, *range(layer.older, wanted["tokens"])]) for x in best.tolist()]
    assert layer.cut(layer.heads * budget)[1] == kept
    of_query_heads = wanted["avgpool"]["kept"]
    assert all(kept[h // 2] != x for h, x in enumerate(of_query_heads))  # the code keeps others for each query head


def test_the_defaults_are_the_code_s():
    arguments = ra.Config(method="snapkv-published", budget=64).policy().scorer.arguments(0)
    assert (arguments.average, arguments.kernel) == (True, read("snapkv")["avgpool"]["kernel_size"])


# ---- Ada-KV ----------------------------------------------------------------------------------------------------------


def adakv(case):
    """The case, and a layer of its prompt with the method's parts: KV heads, the mean over a group, as in the code."""
    wanted = read("adakv")
    wanted |= wanted[case]
    size = {"budget": wanted["capacity"], "window": wanted["window_size"], "safeguard": wanted["floor_alpha"]}
    return wanted, Layer(ra.Config(method="adakv-published", **size).policy(), *states(wanted))


def test_adakv(isa):
    wanted, layer = adakv("met")
    np.testing.assert_allclose(layer.scores(), wanted["scores"], rtol=1e-5)
    budgets, found = layer.cut(layer.heads * wanted["capacity"])
    assert budgets == wanted["budgets"]
    for each in zip(found, wanted["kept"], wanted["scores"], strict=True):
        assert_kept_alike(*each)


@pytest.mark.parametrize("case", ["missed", "floored"])
def test_adakv_s_rounding(isa, case):
    """Where ours differs, knowingly: the code rounds each head's share of the mix by itself, and the even part of it
    down before, so that its budgets miss the total. Both are a rounding of the same mix."""
    wanted, layer = adakv(case)
    window, safeguard = wanted["window_size"], wanted["floor_alpha"]
    base, total = wanted["capacity"] - window, layer.heads * wanted["capacity"]
    counts = oracle.claims(layer.scores(), total, window) - window
    assert counts.sum() == layer.heads * base
    even = safeguard * base
    code = window + np.rint((1 - safeguard) * counts + int(even)).astype(int)
    assert code.tolist() == wanted["budgets"] and code.sum() != total
    assert (int(even) != even) == (case == "floored")
    budgets, _ = layer.cut(total)
    assert sum(budgets) == total
    assert np.abs(np.array(budgets) - (window + (1 - safeguard) * counts + even)).max() < 1


# ---- PyramidKV -------------------------------------------------------------------------------------------------------


def test_pyramidkv_s_budgets():
    """A head's of each layer. The code cuts nothing that is shorter than the budget."""
    for layers, capacity, window, tokens, wanted in read("pyramidkv")["budgets"]:
        policy = ra.Config(method="pyramidkv-published", budget=capacity, window=window).policy()
        view = RowView(0, tokens, 2, window)
        totals = policy.layers.totals(np.ones(layers), layers * 2 * capacity, view)
        assert [min(x // 2, tokens) for x in totals] == wanted


def test_pyramidkv(isa):
    """Every layer of a small model, each with a prompt of its own; the code sums over the window."""
    wanted = read("pyramidkv")
    capacity, window = wanted["max_capacity_prompt"], wanted["window_size"]
    policy = ra.Config(method="pyramidkv-published", budget=capacity, window=window).policy()
    layers, heads = wanted["layers"], wanted["heads"]
    view = RowView(0, wanted["tokens"], heads, window)
    totals = policy.layers.totals(np.ones(len(layers)), len(layers) * heads * capacity, view)
    for own, total in zip(layers, totals, strict=True):
        layer = Layer(policy, *states(wanted | own))
        np.testing.assert_allclose(layer.scores() * window, own["scores"], rtol=1e-5)
        budgets, found = layer.cut(total)
        assert budgets == [len(x) for x in own["kept"]]
        for each in zip(found, own["kept"], own["scores"], strict=True):
            assert_kept_alike(*each)


# ---- DynamicKV -------------------------------------------------------------------------------------------------------


def dynamickv(wanted):
    """A layer for each of the model's, with the code's score: for each query head, mean-pooled over 7.

    "dynamickv" has R-KV's form of the score, knowingly; what is compared is how layers share the budget.
    """
    width = {"pool": wanted["pooling"].removesuffix("pool"), "width": wanted["kernel_size"]}
    size = {"budget": wanted["max_capacity_prompt"], "window": wanted["window_size"]}
    policy = ra.Config(method="snapkv-published", options=width, **size).policy()
    shape = {x: wanted[x] for x in ("query_heads", "heads", "tokens", "dim")}
    group = wanted["query_heads"] // wanted["heads"]
    for queries, keys in prompts(wanted["seed"], wanted["layers"], **shape):
        yield Layer(policy, queries, keys.repeat_interleave(group, 1))


def test_dynamickv(isa):
    """Scores, and how many of the best of all layers each layer has; what stays in the code's budgets."""
    wanted = read("dynamickv")
    layers, window = list(dynamickv(wanted)), wanted["window_size"]
    found = [layer.scores() for layer in layers]
    np.testing.assert_allclose(found[3][:2] * window, wanted["scores"], rtol=1e-5)
    chosen = len(layers) * wanted["query_heads"] * (wanted["max_capacity_prompt"] - window)
    assert oracle.claims([x.ravel() for x in found], chosen).tolist() == wanted["counts"]
    for i, kept in wanted["kept"].items():
        heads, slots = wanted["query_heads"], wanted["budgets"][int(i)]
        assert layers[int(i)].cut(heads * slots) == ([slots] * heads, kept)


def test_dynamickv_s_layers_share_alike(isa):
    """Layers get slots in proportion to their counts. Where ours differs, knowingly: it rounds shares to whole slots of
    a layer; the code rounds those of a head down, three times over, and what is left goes to the last layer."""
    wanted = read("dynamickv")
    heads, window, budget = wanted["query_heads"], wanted["window_size"], wanted["max_capacity_prompt"]
    r_max = ra.Config(method="dynamickv", budget=budget, window=window).policy().layers.r_max
    assert r_max == wanted["radio_max"]
    layers = wanted["layers"]
    total = layers * heads * budget
    scores = [list(layer.scores()) for layer in dynamickv(wanted)]
    ours = ra.allocate.route_layers(scores, total, window=window, r_max=r_max)
    counts = np.array(wanted["counts"])
    share = counts / counts.sum() * layers * (budget - window)  # slots of a head above the window
    assert np.abs(ours - heads * (share + window)).max() < 1 and ours.sum() == total
    code = np.array(wanted["budgets"]) - window
    assert code.sum() == layers * (budget - window)
    assert ((share[:-1] - 2 < code[:-1]) & (code[:-1] <= share[:-1])).all() and code[-1] > share[-1]
