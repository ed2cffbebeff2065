"""Teacher forcing and the fidelity figures on a tiny random model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from models import build

import reasonalloc as ra
from reasonalloc.lab.evaluate import Fidelity, Measure, evaluate_fidelity, forced_log_probs, full_log_probs
from reasonalloc.lab.evaluate.fidelity import points_of
from reasonalloc.lab.evaluate.texts import Text, read


@pytest.fixture(scope="module")
def model():
    return build("llama")


def text(seed: int, prompt: int = 40, tokens: int = 60) -> Text:
    ids = torch.randint(3, 97, (prompt + tokens,), generator=torch.Generator().manual_seed(seed))
    return Text(str(seed), ids[:prompt], ids[prompt:])


@pytest.fixture(scope="module")
def result(model):
    configs = points_of(["full", "rkv"], [16, 48, 4096], [], ra.Config(method="full", interval=8))
    return evaluate_fidelity(model, [text(0), text(1), text(2)], configs, provenance={"model": "tiny"})


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_one_forward_pass_equals_steps(name):
    model, given = build(name), text(0)
    full = full_log_probs(model, given.prompt, given.solution)
    steps = torch.stack(
        list(
            forced_log_probs(model, ra.ReasonAllocCache(model, ra.Config(method="full")), given.prompt, given.solution)
        )
    )
    ra.uninstall(model)
    assert full.shape == steps.shape == (60, 97)
    torch.testing.assert_close(full, steps, atol=2e-4, rtol=0)


def test_full_cache_is_exact(result):
    full = result.points[0]
    assert full.method == "full" and full.setting == "all"
    assert full.kl.mean == pytest.approx(0, abs=1e-6)
    assert full.excess_nll.mean == pytest.approx(0, abs=1e-5)
    assert full.agreement.mean == 1.0 and full.slots_ratio.mean == 1.0


def test_a_budget_that_holds_everything_is_exact(result):
    assert result.points[3].budget == 4096
    assert result.points[3].kl.mean == pytest.approx(0, abs=1e-6)


def test_smaller_budgets_are_further_away(result):
    _, small, middle, large = result.points
    assert small.kl.mean > middle.kl.mean > large.kl.mean
    assert small.agreement.mean < 1
    assert small.slots_ratio.mean < middle.slots_ratio.mean < 1
    assert small.mean_bytes.mean < middle.mean_bytes.mean < large.mean_bytes.mean <= large.peak_bytes.mean


def test_figures_by_hand(model, result):
    """The first problem's figures at budget 16 from the definitions."""
    given = text(0)
    cache = ra.ReasonAllocCache(model, ra.Config(method="rkv", budget=16, interval=8))
    own = torch.stack(list(forced_log_probs(model, cache, given.prompt, given.solution))).double()
    ra.uninstall(model)
    full = full_log_probs(model, given.prompt, given.solution).double()
    row = result.points[1].problems[0]
    at = torch.arange(60), given.solution
    assert row["tokens"] == 60
    assert row["nll"] == pytest.approx(-float(own[at].mean()), rel=1e-4)
    assert row["excess_nll"] == pytest.approx(float((full[at] - own[at]).mean()), rel=1e-3)
    assert row["kl"] == pytest.approx(float((full.exp() * (full - own)).sum(-1).mean()), rel=1e-3)
    assert row["agreement"] == pytest.approx(float((full.argmax(-1) == own.argmax(-1)).double().mean()))


def test_intervals(model, result):
    for point in result.points:
        for metric in ("nll", "kl", "agreement"):
            measure = getattr(point, metric)
            values = [x[metric] for x in point.problems]
            close = 1e-12 * abs(max(values))  # a mean of equal numbers may round past them
            assert min(values) - close <= measure.low <= measure.mean <= measure.high <= max(values) + close
    single = evaluate_fidelity(model, [text(0, 10, 5)], [ra.Config(method="full")])
    assert single.points[0].nll.low is None and single.points[0].nll.text(".1f").count("[") == 0
    assert single.full_nll == Measure(single.full_nll.mean)


def test_methods_at_equal_bytes(model, tmp_path):
    """At equal budgets one that is cut every token weighs less than one that is cut at intervals of 128."""
    texts, base, peaks = [text(3, 20, 240)], ra.Config(method="full", window=4), []
    for budgets, sizes in (([64], []), ([], ["96 KiB"])):
        found = evaluate_fidelity(model, texts, points_of(["rkv", "streaming"], budgets, [], base, sizes))
        found.save(tmp_path / "f.json")
        assert Fidelity.load(tmp_path / "f.json") == found
        peaks.append([p.peak_bytes.mean for p in found.points])
    assert peaks[0][0] > 2 * peaks[0][1]
    assert all(0.85 * 96 * 1024 < peak <= 96 * 1024 for peak in peaks[1])
    assert [p.setting for p in found.points] == ["0.09375 MiB"] * 2 and found.points[0].max_bytes == 96 * 1024
    pytest.importorskip("matplotlib")
    from reasonalloc.lab import plots

    plots.fidelity(found, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_result(model):
    configs, texts = [ra.Config(method="random", budget=16, interval=8)], [text(3, 30, 10), text(4, 30, 10)]
    assert evaluate_fidelity(model, texts, configs).points == evaluate_fidelity(model, texts, configs).points


def test_json_round_trip(result, tmp_path):
    result.save(tmp_path / "f.json")
    assert Fidelity.load(tmp_path / "f.json") == result
    assert json.loads((tmp_path / "f.json").read_text())["schema"] == 1


@pytest.mark.parametrize("content", ["no", "[]", "{}", '{"schema": 2}', '{"schema": 1, "points": [{}]}'])
def test_load_refuses_other_files(content, tmp_path):
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(ValueError, match="not a fidelity result"):
        Fidelity.load(tmp_path / "f.json")


def test_the_model_is_left_as_it_was(model, result):
    assert model.config._attn_implementation != "reasonalloc"


def test_points():
    base = ra.Config(method="full", interval=4)
    points = points_of(["full", "rkv"], [], [0.25, 0.5], base)
    assert [(p.method, p.ratio, p.interval) for p in points] == [("full", None, 4), ("rkv", 0.25, 4), ("rkv", 0.5, 4)]
    with pytest.raises(ValueError, match="nosuch"):
        points_of(["nosuch"], [64], [], base)


def test_nothing_to_do_is_refused(model):
    with pytest.raises(ValueError, match="config"):
        evaluate_fidelity(model, [text(0)], [])
    with pytest.raises(ValueError, match="text"):
        evaluate_fidelity(model, [], [ra.Config(method="full")])


def test_a_used_cache_is_refused(model):
    cache = ra.ReasonAllocCache(model, ra.Config(method="full"))
    given = text(0, 5, 3)
    list(forced_log_probs(model, cache, given.prompt, given.solution))
    with pytest.raises(ValueError, match="empty"):
        next(forced_log_probs(model, cache, given.prompt, given.solution))
    ra.uninstall(model)


@pytest.mark.parametrize("line", ["no", "[1]", '{"problem": "a"}', '{"problem": "a", "solution": 3}'])
def test_texts_of_another_form_are_refused(line, tmp_path):
    (tmp_path / "t.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"t\.jsonl:2"):
        read(tmp_path / "t.jsonl", None, 10)


def test_plot(result, tmp_path):
    pytest.importorskip("matplotlib")
    from reasonalloc.lab import plots

    plots.fidelity(result, tmp_path / "deep" / "f.png")
    plots.fidelity(replace(result, points=result.points[:1]), tmp_path / "full.png")
    assert (tmp_path / "deep" / "f.png").read_bytes().startswith(b"\x89PNG")
