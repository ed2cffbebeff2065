"""Teacher forcing and the fidelity figures on a tiny random model."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from models import build

import reasonalloc as ra
from reasonalloc.lab.evaluate import Fidelity, Measure, evaluate_fidelity, forced_log_probs, full_log_probs
from reasonalloc.lab.evaluate.cells import Cell, cell_name
from reasonalloc.lab.evaluate.points import points_of
from reasonalloc.lab.evaluate.texts import Text, pieces, read, worked
from reasonalloc.lab.tasks import items


@pytest.fixture(scope="module")
def model():
    return build("llama")


def text(seed: int, prompt: int = 40, tokens: int = 60) -> Text:
    ids = torch.randint(3, 97, (prompt + tokens,), generator=torch.Generator().manual_seed(seed))
    return Text(str(seed), ids[:prompt], ids[prompt:])


@pytest.fixture(scope="module")
def result(model):
    configs = points_of(["full", "rkv"], [16, 48, 4096], [], {"interval": 8})
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
    texts, base, peaks = [text(3, 20, 240)], {"window": 4}, []
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
    base = {"interval": 4}
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


def test_a_point_without_the_axis_size_is_over_the_bytes_alone(result, tmp_path):
    from reasonalloc.lab import plots

    plain = next(x for x in result.points if x.method != "full" and x.budget is not None)
    others = [replace(plain, method="rlkv", budget=None), replace(plain, method="snapkv", budget=None, ratio=0.1)]
    above, below = plots.fidelity(replace(result, points=[plain, *others])).axes[:4:3]
    assert above.get_legend_handles_labels()[1] == [plain.name]
    assert below.get_legend_handles_labels()[1] == [plain.name, "rlkv", "snapkv"]


def test_a_batch_gives_what_texts_give_alone(model):
    """Texts of other lengths side by side: the same figures, whatever ends first."""
    texts = [text(0, 40, 60), text(1, 23, 31), text(2, 31, 60)]
    configs = points_of(["full", "rkv", "random"], [24], [], {"interval": 8})
    alone, both = (evaluate_fidelity(model, texts, configs, batch_size=x) for x in (1, 3))
    for one, other in zip(alone.points, both.points, strict=True):
        assert [x["id"] for x in other.problems] == ["0", "1", "2"]
        for mine, batched in zip(one.problems, other.problems, strict=True):
            for metric in ("nll", "kl", "agreement"):
                assert batched[metric] == pytest.approx(mine[metric], rel=2e-3, abs=1e-5)
            for metric in ("tokens", "mean_bytes", "peak_bytes", "slots_ratio"):
                assert batched[metric] == mine[metric]
    assert both.points[0].slots_ratio.mean == 1.0
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate_fidelity(model, texts, configs, batch_size=0)


def test_bytes_are_those_of_the_cache(model):
    given = text(0)
    cache = ra.ReasonAllocCache(model, ra.Config(method="rkv", budget=16, interval=8))
    sizes = []
    for _ in forced_log_probs(model, cache, given.prompt, given.solution):
        sizes.append(cache.stats()["bytes"])
    ratio = cache.stats()["ratio"]
    ra.uninstall(model)
    (point,) = evaluate_fidelity(model, [given], [ra.Config(method="rkv", budget=16, interval=8)]).points
    assert point.mean_bytes.mean == pytest.approx(sum(sizes) / 60) and point.peak_bytes.mean == max(sizes)
    assert point.slots_ratio.mean == pytest.approx(ratio)


def test_differences_are_paired_by_text(model, tmp_path):
    """By definition: means of the texts' differences, the permutation test's p, Holm's over those that are told."""
    texts = [text(i, 30, 40) for i in range(4)]
    base = {"interval": 8}
    cells = [Cell(cell_name(x), x) for x in points_of(["full", "rkv", "streaming"], [16, 24], [], base)]
    cells.append(Cell("rkv 16 alpha=1", replace(cells[1].config, alpha=1.0)))
    found = evaluate_fidelity(model, texts, cells, against="rkv")
    assert [(x.name, x.setting) for x in found.differences] == [
        ("streaming", "16"), ("streaming", "24"), ("rkv alpha=1", "16")
    ]  # fmt: skip
    kls = {(x.name, x.setting): np.array([y["kl"] for y in x.problems]) for x in found.points}
    ps = []
    for told in found.differences:
        gap = kls[told.name, told.setting] - kls["rkv", told.setting]
        signs = np.array(list(itertools.product([1, -1], repeat=4)))
        ps.append((np.abs(signs @ gap) >= abs(gap.sum()) - 1e-9).mean())
        assert told.kl.mean == pytest.approx(gap.mean()) and told.p == pytest.approx(ps[-1])
        assert told.kl.low <= told.kl.mean <= told.kl.high and told.family == 3 and told.against == "rkv"
    assert [x.holm for x in found.differences][int(np.argmin(ps))] == pytest.approx(min(1, 3 * min(ps)))
    found.save(tmp_path / "f.json")
    assert Fidelity.load(tmp_path / "f.json") == found
    assert found.differences_table().row_count == 3
    for against, told in (
        ("snapkv", "must be one of the methods full, rkv.*'snapkv'"),
        ("full", "already, give anothe"),
    ):
        with pytest.raises(ValueError, match=f"against.*{told}"):
            evaluate_fidelity(model, texts, cells, against=against)
    with pytest.raises(ValueError, match="nothing has a size that rkv has too"):
        evaluate_fidelity(model, texts, [cells[1], ra.Config(method="streaming", budget=32)], against="rkv")
    again = evaluate_fidelity(model, texts[:1], [*cells, *cells[1:]], against="rkv")  # each once
    assert len(again.points) == len(cells) and {x.family for x in again.differences} == {3}


def test_a_text_keeps_its_share_of_the_bytes_in_a_smaller_batch(model):
    texts, config = [text(i, 30, 90) for i in range(3)], ra.Config(method="rkv", max_bytes="60KiB", interval=8)
    (point,) = evaluate_fidelity(model, texts, [config], batch_size=2).points  # the third is alone
    alone = [evaluate_fidelity(model, [x], [replace(config, max_bytes="30KiB")]).points[0] for x in texts]
    assert [x["slots_ratio"] for x in point.problems] == [x.slots_ratio.mean for x in alone]
    assert point.max_bytes == 60 * 1024 and max(x["slots_ratio"] for x in point.problems) < 0.9


def test_pieces_of_documents(tmp_path):
    words = models.Words()
    (tmp_path / "a.md").write_text("".join(chr(65 + i) for i in range(50)))  # a token for each letter
    (tmp_path / "b.txt").write_text("x" * 23)
    paths = [tmp_path / "a.md", tmp_path / "b.txt"]
    found = pieces(paths, words, 5, 15)
    assert [x.id for x in found] == ["a.md/0", "b.txt/0", "a.md/1"]
    assert all(len(x.prompt) == 5 and len(x.solution) == 15 for x in found)
    whole = words((tmp_path / "a.md").read_text(), return_tensors="pt").input_ids[0]
    assert torch.cat([found[2].prompt, found[2].solution]).tolist() == whole[20:40].tolist()
    assert [x.id for x in pieces(paths, words, 5, 15, 2)] == ["a.md/0", "b.txt/0"]
    with pytest.raises(ValueError, match=r"b\.txt has 23 tokens, less than a piece of 5 and 40"):
        pieces(paths, words, 5, 40)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"b\.txt is no text in UTF-8"):
        pieces(paths, words, 5, 15)


def test_worked_answers():
    asked = items("search", count=1, settings=["short"]) + items("ledger", count=1, settings=["doubting"])
    assert all("\\boxed{" in x.chain for x in asked)
    words = models.Words()
    found = worked(asked, words, 10**6)
    assert [x.id for x in found] == [x.id for x in asked]
    assert found[0].solution.tolist() == words(asked[0].chain, return_tensors="pt").input_ids[0].tolist()
    assert len(worked(asked, words, 7)[1].solution) == 7
    with pytest.raises(ValueError, match="ledger and search"):
        worked(items("math500", count=2), words, 10)
