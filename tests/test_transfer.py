"""Waves of several tasks and their distances, on a tiny random model."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import build, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.hf import profile as wave
from reasonalloc.lab.evaluate import texts
from reasonalloc.lab.evaluate.prompts import TASKS, prompts

pytest.importorskip("scipy", reason="the Earth Mover's Distance needs scipy: pip install '.[evaluate]'")

from scipy.stats import rankdata

from reasonalloc.lab.evaluate.distances import earth_movers, matrix, separation, share
from reasonalloc.lab.evaluate.transfer import evaluate_transfer
from reasonalloc.lab.evaluate.transfer_result import Measuring

SHIPPED = [x for x in TASKS if x != "aime24"]
SMALL = Measuring(prompts=3, max_new_tokens=12, queries=8)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test writes into the user's folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer():
    """A token for each character."""
    vocabulary = {"<pad>": 0, "<end>": 1, "<unk>": 2} | {chr(c): c - 29 for c in range(32, 126)}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def result(tokenizer, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield evaluate_transfer(tiny("qwen3"), tokenizer, ["ledger", "functions"], SMALL, provenance={"model": "tiny"})
    patch.undo()


# ---- Prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", SHIPPED)
def test_prompts_are_drawn_by_the_seed(task):
    first = prompts(task, 4, seed=1)
    assert [x.problem for x in first] == [x.problem for x in prompts(task, 4, seed=1)]
    assert [x.problem for x in prompts(task, 6, seed=1)[:4]] == [x.problem for x in first]
    assert [x.problem for x in first] != [x.problem for x in prompts(task, 4, seed=2)]
    assert len({x.problem for x in first}) == len({x.id for x in first}) == 4


def test_the_document_is_long():
    assert min(len(x.problem.split()) for x in prompts("document", 3)) > 1500


def test_prompts_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"ledger, math500.*nosuch"):
        prompts("nosuch", 1)
    with pytest.raises(ValueError, match="between 1 and that, got 9"):
        prompts("functions", 9)


# ---- Distances -------------------------------------------------------------------------------------------------------


def test_earth_movers_by_hand():
    assert earth_movers((0, 1, 2, 3), [1, 0, 0, 0], [0, 0, 0, 5]) == pytest.approx(3)
    assert earth_movers((0, 1, 2), [2, 2, 2], [1, 1, 1]) == pytest.approx(0)
    assert earth_movers((5, 11), [1, 1], [1, 3]) == pytest.approx(6 / 4)  # a quarter moves from layer 5 to layer 11
    rng = np.random.default_rng(0)
    one, other = rng.random(30), rng.random(30)
    expected = np.abs(np.cumsum(share(one) - share(other)))[:-1].sum()  # neighbouring layers are one layer apart
    assert earth_movers(range(30), one, other) == pytest.approx(expected)


@pytest.mark.parametrize("numbers", [[], [0, 0], [1, -1], [1, float("nan")], [[1, 2]]])
def test_what_is_no_wave_is_refused(numbers):
    with pytest.raises(ValueError, match="a wave has"):
        share(numbers)


def clouds(gap: float, tasks: int = 2, size: int = 4) -> tuple[np.ndarray, list[int]]:
    """Waves of tasks whose weight lies `gap` layers apart, with noise."""
    rng = np.random.default_rng(3)
    layers = np.arange(20)
    labels = [t for t in range(tasks) for _ in range(size)]
    waves = [1 + np.exp(-((layers - 8 - gap * t) ** 2) / 8) + 0.1 * rng.random(20) for t in labels]
    return matrix(range(20), waves), labels


def test_separation_by_definition():
    distances, labels = clouds(2, tasks=3)
    found = separation(distances, labels)
    pairs = list(itertools.combinations(range(12), 2))
    within = np.mean([distances[i, j] for i, j in pairs if labels[i] == labels[j]])
    between = np.mean([distances[i, j] for i, j in pairs if labels[i] != labels[j]])
    assert found.within == pytest.approx(within) and found.between == pytest.approx(between)
    assert found.difference.mean == pytest.approx(between - within)
    assert found.difference.low <= found.difference.mean <= found.difference.high
    assert [found.means[0][2], found.means[2][0]] == pytest.approx([distances[:4, 8:].mean()] * 2)
    assert found.means[1][1] == pytest.approx(distances[4:8, 4:8].sum() / 12)


def test_permutation_test_is_the_exact_one():
    """All 70 ways to split eight prompts into two tasks of four."""
    distances, labels = clouds(0.3)
    gap = []
    for chosen in itertools.combinations(range(8), 4):
        task = np.isin(np.arange(8), chosen)
        same = task[:, None] == task[None, :]
        gap.append(distances[~same].mean() - distances[same & ~np.eye(8, dtype=bool)].mean())
    observed = gap[0]  # the first four are one task
    exact = np.mean(np.array(gap) >= observed - 1e-12)
    found = separation(distances, labels)
    assert found.p == pytest.approx(exact, abs=0.02)
    assert found.pairwise_p[0][1] == pytest.approx(exact, abs=0.02) and found.pairwise_p[0][0] is None
    assert found.least_p == pytest.approx(2 / 70)


def test_tasks_that_differ_are_told_apart():
    apart, alike = separation(*clouds(3, tasks=3)), separation(*clouds(0, tasks=3))
    assert apart.p < 0.001 and apart.difference.low > 0
    assert alike.p > 0.05 and alike.difference.low < 0 < alike.difference.high
    assert apart.least_p == pytest.approx(6 / 34650)  # 12! / 4!^3 assignments, of which 3! are renamings
    assert separation(*clouds(3, tasks=3)) == apart  # the same seed


def test_single_prompts_have_no_within():
    distances, _ = clouds(1, tasks=3, size=1)
    found = separation(distances, [0, 1, 2])
    assert found.within is None and found.between is not None and found.p is None and found.means[0][0] is None
    alone = separation(distances, [0, 0, 0])
    assert alone.between is None and alone.within is not None


# ---- Waves -----------------------------------------------------------------------------------------------------------


def test_waves_are_those_of_profile(result, tokenizer):
    for task in ("ledger", "functions"):
        asked = [x.problem for x in prompts(task, 3)]
        expected = ra.profile(tiny("qwen3"), tokenizer, asked, max_new_tokens=12, queries=8, progress=False)
        assert result.profiles[task].demand == pytest.approx(expected.demand)
        assert result.profiles[task].layers == expected.layers == result.layers
        one = ra.profile(tiny("qwen3"), tokenizer, asked[1:2], max_new_tokens=12, queries=8, progress=False)
        assert [x.demand for x in result.chains if x.task == task][1] == one.demand


def test_distances_follow_from_the_waves(result):
    one, other = (result.profiles[x].demand for x in ("ledger", "functions"))
    assert result.wave.tasks[0][1] == pytest.approx(earth_movers(result.layers, one, other))
    ours, theirs = (ra.allocate.robustify(x, 128 * 3) for x in (one, other))
    assert result.budgets.tasks[1][0] == pytest.approx(earth_movers(result.layers, ours, theirs))
    assert result.budgets.moved[0][1] == pytest.approx(abs(ours - theirs).sum() / 2 / 384)
    assert result.wave.flat[0] == pytest.approx(earth_movers(result.layers, one, [1, 1, 1]))
    demands = [x.demand for x in result.chains]
    expected = np.mean([earth_movers(result.layers, a, b) for a in demands[:3] for b in demands[3:]])
    assert result.wave.prompts.means[0][1] == pytest.approx(expected)
    tokens = np.log([x.prompt_tokens + x.chain_tokens for x in result.chains])
    pairs = list(itertools.combinations(range(6), 2))
    apart = [earth_movers(result.layers, demands[i], demands[j]) for i, j in pairs]
    longer = [abs(tokens[i] - tokens[j]) for i, j in pairs]
    assert result.wave.length == pytest.approx(np.corrcoef(rankdata(apart), rankdata(longer))[0, 1])
    assert result.wave.chains is None and result.wave.prompts.least_p == pytest.approx(2 / 20)


def test_samples_of_a_prompt(tokenizer):
    settings = Measuring(prompts=2, max_new_tokens=8, queries=4, temperature=1.0, samples=2, seed=3)
    done = []
    found = evaluate_transfer(tiny(), tokenizer, ["ledger"], settings, progress=lambda: done.append(1))
    assert len(done) == len(found.chains) == 4 and {x.seed for x in found.chains} == {3, 4}
    pairs = [[x.demand for x in found.chains if x.prompt == name] for name in {x.prompt for x in found.chains}]
    assert found.wave.chains == pytest.approx(np.mean([earth_movers(found.layers, a, b) for a, b in pairs]))
    assert found.wave.prompts.between is None and found.wave.prompts.within is not None
    assert found.profiles["ledger"].demand == pytest.approx(np.mean([x.demand for x in found.chains], axis=0))


def test_lengths_can_be_made_to_agree(result, tokenizer):
    model, settings = tiny("qwen3"), replace(SMALL, last=40)
    found = evaluate_transfer(model, tokenizer, ["ledger", "functions"], settings)
    (text,) = texts.generate(model, tokenizer, prompts("ledger", 1), 12)
    newest = torch.cat([text.prompt, text.solution])[-40:]
    assert found.chains[0].demand == tuple(wave.measure(model, newest[None], queries=8).values())
    assert found.chains[0].prompt_tokens == result.chains[0].prompt_tokens > 40
    assert found.chains[0].demand != result.chains[0].demand


def test_a_kept_text_that_is_damaged_is_made_again(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (whole,) = texts.generate(tiny(), tokenizer, prompts("ledger", 1), 12)
    (path,) = (tmp_path / "reasonalloc" / "texts").iterdir()
    kept = path.read_bytes()
    for damaged in ("", "{", "[" * 100_000, "[-1]", "[1.5]", "[true]", "[10000]", "[]", "null", '["1"]', "[1e400]"):
        path.write_text(damaged)
        (again,) = texts.generate(tiny(), tokenizer, prompts("ledger", 1), 12)
        assert again.solution.tolist() == whole.solution.tolist() and path.read_bytes() == kept


def test_layers_with_sliding_windows_have_no_wave(tokenizer):
    found = evaluate_transfer(tiny("gemma3"), tokenizer, ["functions"], replace(SMALL, prompts=1))
    assert found.layers == found.profiles["functions"].layers == (2, 5)


def test_an_interrupted_run_goes_on(tokenizer, monkeypatch):
    model, calls = build("llama"), []
    plain = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: calls.append(1) or plain(**given))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_transfer(model, tokenizer, ["ledger"], SMALL, progress=stop)
    evaluate_transfer(model, tokenizer, ["ledger"], SMALL)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompts": 0}, "prompts must be at least 1, got 0"),
        ({"rho": 1.0}, "rho must lie between"),
        ({"last": 10}, "last must be at least the 64 queries, got 10"),
        ({"samples": 2}, "temperature above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Measuring(**settings)


def test_no_task_is_refused(tokenizer):
    with pytest.raises(ValueError, match="at least one task"):
        evaluate_transfer(tiny(), tokenizer, [])


# ---- Results and the command -----------------------------------------------------------------------------------------


def test_tables_say_the_same(result):
    first, second = ([x.plain for x in table.columns[1].cells] for table in result.rich_tables())
    assert first[0] == "" and first[1].startswith(f"{result.wave.tasks[1][0]:.2f} / ")
    assert second[0].startswith(f"{result.wave.prompts.means[0][0]:.2f} / ")
    text = result.markdown()
    assert first[1] in text and second[0] in text and "permutation p = " in text
    assert all(line in text for line in result.statements())


def test_saved_waves_serve_a_cache(result, tmp_path):
    paths = result.save_profiles(tmp_path / "deep" / "waves")
    assert [x.name for x in paths] == ["wave-ledger.json", "wave-functions.json"]
    profile = ra.WaveProfile.load(paths[1])
    assert profile == result.profiles["functions"] and profile.source["task"] == "functions"
    ra.ReasonAllocCache(tiny("qwen3"), ra.Config(budget=16, profile=profile))
    json.dumps(result.as_json())


def test_plot(result, tmp_path, tokenizer):
    pytest.importorskip("matplotlib")
    from reasonalloc.lab import plots

    plots.transfer(result, tmp_path / "deep" / "t.png")
    single = evaluate_transfer(tiny(), tokenizer, ["functions"], replace(SMALL, prompts=1))
    plots.transfer(single, tmp_path / "single.png")
    assert (tmp_path / "deep" / "t.png").read_bytes().startswith(b"\x89PNG")


def test_command(tokenizer, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    build("llama", eos_token_id=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = ["evaluate", "transfer", "--model", str(tmp_path / "model"), "--tasks", "ledger,functions,ledger"]
    command += ["--prompts", "2", "--max-new-tokens", "4"]
    assert main([*command, "--output", "out", "--json", "t.json"]) == 0
    printed = capsys.readouterr().out
    assert "permutation p" in printed and "ledger" in printed
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == [
        "transfer.json", "transfer.md", "transfer.png", "wave-functions.json", "wave-ledger.json",
    ]  # fmt: skip
    data = json.loads((tmp_path / "t.json").read_text())
    assert data == json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert data["tasks"] == ["ledger", "functions"] and len(data["chains"]) == 4
    assert data["provenance"]["command"]

    assert main([*command[:-5], "ledger,nosuch"]) == 2
    assert "must be among ledger, math500" in capsys.readouterr().err
    assert main([*command, "--samples", "2"]) == 2
    assert "temperature above 0" in capsys.readouterr().err
