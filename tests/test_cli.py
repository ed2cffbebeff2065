"""The command line on a tiny random model."""

from __future__ import annotations

import importlib.metadata
import json
import runpy
from io import StringIO
from pathlib import Path

import pytest
import torch
from models import build
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache, PreTrainedTokenizerFast

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.cli import main
from reasonalloc.cli.batch_watch import BatchWatch
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.tokens import encode_prompt
from reasonalloc.lab.models import load, task_of
from reasonalloc.lab.problems import find, math500

WORDS = ["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(94))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with a tokenizer that knows words."""
    path = tmp_path_factory.mktemp("model")
    build("llama", eos_token_id=1).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test writes into the user's folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prompt(words: int) -> str:
    return " ".join(f"w{i % 94}" for i in range(words))


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.split() == ["reasonalloc", ra.__version__]


def test_as_a_module(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["reasonalloc", "--version"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("reasonalloc", run_name="__main__")
    assert left.value.code == 0 and ra.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["--help"]])
def test_without_a_command_there_is_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 0
    out, err = capsys.readouterr()
    assert "answer a prompt with a compressed cache" in out and not err


def test_profile_generate(folder, tmp_path, capsys):
    assert main(["profile", "--model", folder, "--prompts", "2", "--max-new-tokens", "8", "-o", "w.json"]) == 0
    assert "█" in capsys.readouterr().out
    wave = ra.WaveProfile.load("w.json")
    assert wave.layers == (0, 1, 2) and wave.source["prompt_count"] == 2

    command = ["generate", "--model", folder, "--prompt", prompt(60), "--budget", "24", "--interval", "8"]
    assert main([*command, "--profile", "w.json", "--max-new-tokens", "20", "--json", "out.json"]) == 0
    assert "a second" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["prompt_tokens"] == 60
    assert result["stats"]["wave"] == "profile" and result["stats"]["evicted"] > 0

    own = ["--method", "RKV", "--keep-prompt", "--alpha", "0.5", "--max-new-tokens", "30", "--json", "kept.json"]
    assert main([*command, *own]) == 0
    config = ra.Config("rkv", budget=24, interval=8, keep_prompt=True, alpha=0.5)
    model, tokenizer, _ = load(folder)
    cache = ra.ReasonAllocCache(model, config)
    ids = encode_prompt(tokenizer, prompt(60), "cpu")
    model.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0, **cache_argument(cache))
    result = json.loads((tmp_path / "kept.json").read_text())["stats"]
    for name in ("slots", "evicted", "lost_mass"):
        assert result[name] == cache.stats()[name]
    capsys.readouterr()

    assert main([*command, "--sample", "--seed", "3", "--max-new-tokens", "5", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] <= 5


def test_generate_streams_the_text(folder, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text(prompt(5), encoding="utf-8")
    command = [
        "generate",
        "--model",
        folder,
        "--prompt-file",
        "prompt.txt",
        "--method",
        "full",
        "--max-new-tokens",
        "9",
    ]
    assert main([*command, "--json", "out.json"]) == 0
    text = json.loads((tmp_path / "out.json").read_text())["text"]
    assert text and text in capsys.readouterr().out


def test_generate_says_why_it_keeps_more_than_a_ratio(folder, capsys):
    command = ["generate", "--model", folder, "--prompt", prompt(30), "--method", "rkv", "--max-new-tokens", "12"]
    assert main([*command, "--set", "window=2", "--ratio", "0.1"]) == 0
    assert "a ratio of 0.1 is what stays at a cut; until the next one up to 128 tokens" in capsys.readouterr().out
    for more in (["--ratio", "0.9"], ["--budget", "9"]):
        assert main([*command, "--set", "window=2", *more]) == 0
        captured = capsys.readouterr()
        assert "stays at a cut" not in captured.err + captured.out


def test_generate_says_why_it_keeps_more_than_a_budget(folder, capsys):
    command = ["generate", "--model", folder, "--method", "rkv", "--max-new-tokens", "12", "--set", "window=2"]
    assert main([*command, "--prompt", prompt(5), "--budget", "9"]) == 0
    assert "nothing was evicted: a budget of 9 is what stays at a cut" in capsys.readouterr().out
    for words, budget in ((5, "64"), (30, "9")):
        assert main([*command, "--prompt", prompt(words), "--budget", budget]) == 0
        assert "nothing was evicted" not in capsys.readouterr().out


def test_prompts_from_a_file(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{prompt(9)}\n\n{prompt(5)}\n", encoding="utf-8")
    command = ["profile", "--model", folder, "--prompts", "prompts.txt", "--max-new-tokens", "4", "--json", "p.json"]
    assert main(command) == 0
    assert json.loads((tmp_path / "p.json").read_text())["source"]["prompt_count"] == 2


TINY_DEMO = ["demo", "--task", "ledger", "--setting", "questions=1,depth=1,distractors=0", "--problems", "3"]


def test_demo(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("reasonalloc.cli.batch_watch._SPOKEN", 0)
    command = [*TINY_DEMO, "--model", folder, "--budget", "16", "--interval", "8", "--max-new-tokens", "40"]
    assert main([*command, "--methods", "rkv,ReasonAlloc", "--out", "pictures", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    full, rkv, ours = result["runs"]
    assert [x["title"] for x in result["runs"]] == ["full cache", "rkv, budget 16", "reasonalloc, budget 16"]
    assert full["stats"] is None and ours["stats"]["evicted"] > 0 and ours["stats"]["method"] == "reasonalloc"
    assert 0 < rkv["peak_bytes"] < full["peak_bytes"] and full["tokens"] <= 3 * 40
    assert all(x["questions"] == 3 and len(x["answers"]) == 3 and x["tokens_per_second"] > 0 for x in result["runs"])
    assert all(x["late_tokens_per_second"] > 0 for x in result["runs"])
    assert len(result["problems"]) == 3 and 1 <= result["steps_compared"] <= 40
    assert "answers right" in err and "tokens a second" in err and "\x1b" not in err
    assert "  5 steps, 3 chains at work, " in err  # where there is no terminal
    assert "ReasonAlloc" not in err and '"data"' in (tmp_path / "pictures" / "report.html").read_text()
    for name in ("gain.png", "budgets.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_demo_of_a_budget_that_holds_everything(folder, capsys):
    """It changes nothing, and both caches hold the same tokens."""
    command = [*TINY_DEMO, "--model", folder, "--methods", "rkv", "--budget", "4096", "--max-new-tokens", "20"]
    assert main([*command, "--out", "pictures", "--json", "-"]) == 0
    full, ours = json.loads(capsys.readouterr().out)["runs"]
    assert full["answers"] == ours["answers"]
    assert ours["peak_bytes"] >= full["peak_bytes"] > 0.5 * ours["peak_bytes"]  # pages of 16 tokens


def test_demo_of_searches(folder, capsys):
    """A reasoner's own task, greedily."""
    assert [task_of(x) for x in ("ledger-135m", "search-135m", "smollm2")] == ["ledger", "search", None]
    command = ["demo", "--task", "search", "--model", folder, "--problems", "2", "--max-new-tokens", "8"]
    assert main([*command, "--methods", "rkv", "--out", "pictures", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [x["group"] for x in result["problems"]] == ["short"] * 2 and result["sampling"]["temperature"] == 0


def test_demo_on_a_terminal(folder, monkeypatch):
    """Chains are shown as they run, one a line, with what came of them."""
    model, tokenizer, _ = load(folder)
    out = Console(file=StringIO(), force_terminal=True, width=100)
    cache = DynamicCache()
    monkeypatch.setattr("reasonalloc.cli.batch_watch._REFRESH", 0)
    with torch.no_grad(), BatchWatch(out, tokenizer, cache, ["a", "b"], "a \x1b title") as watch:
        model(torch.tensor([[5, 6], [7, 8]]), past_key_values=cache)
        watch(torch.zeros(2, 97), ["a", "b"], [9, 10])
        watch.ended("b", Text("1/1 right"))
        model(torch.tensor([[9], [10]]), past_key_values=cache)
        watch(torch.zeros(2, 97), ["a", "b"], [11, 12])
    text = out.file.getvalue()
    assert "w6 w8" in text and "1/1 right" in text and "2 chains at work" in text and "\x1b title" not in text
    assert watch.ids == {"a": [9, 11], "b": [10, 12]} and [x.rows for x in watch.steps] == [2, 2]
    one = sum(2 * x.keys[:, :, :1].nbytes for x in cache.layers)
    assert [x.size for x in watch.steps] == [2 * one, 3 * one] and watch.speed == 2 / watch.steps[1].seconds


def test_evaluate_fidelity(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    command = ["evaluate", "fidelity", "--model", folder, "--problems", "2", "--tokens", "12", "--interval", "4"]
    sizes = ["--methods", "full,rkv", "--budgets", "12,24", "--json", "f.json", "--plot", "f.png"]
    assert main([*command, *sizes]) == 0
    assert "top-1 agreement" in capsys.readouterr().out
    result = json.loads((tmp_path / "f.json").read_text())
    assert [(p["method"], p["budget"]) for p in result["points"]] == [("full", None), ("rkv", 12), ("rkv", 24)]
    assert len(list((tmp_path / "cache" / "reasonalloc" / "texts").iterdir())) == 2
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")

    lines = [json.dumps({"problem": prompt(30), "solution": prompt(n)}) for n in (9, 14)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    given = ["--texts", "texts.jsonl", "--methods", "streaming", "--ratios", "0.5", "--json", "-"]
    assert main([*command, *given]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [x["tokens"] for x in points[0]["problems"]] == [9, 12]

    spans = ["--ablation", "spans", "--cells", "rkv,spans,spans span=4", "--budgets", "16,24", "--keep-prompt"]
    task = ["--task", "ledger", "--settings", "questions=1,depth=1", "--batch-size", "2"]
    assert main([*command, *spans, *task, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [("spans", "16"), ("spans span=4", "16"), ("spans", "24"), ("spans span=4", "24")]
    assert [(x["name"], x["setting"]) for x in found["differences"]] == names
    assert found["differences"][0]["against"] == "rkv" and found["differences"][0]["family"] == 4
    assert [x["id"] for x in found["points"][0]["problems"]] == [f"ledger/questions=1,depth=1/0/{i}" for i in range(2)]
    assert found["provenance"]["keep_prompt"] is True and "worked answers of ledger" in found["provenance"]["texts"]
    (tmp_path / "long.md").write_text(prompt(80), encoding="utf-8")
    document = ["--documents", "long.md", "--prompt-tokens", "20", "--methods", "rkv,random", "--budgets", "12"]
    assert main([*command, *document]) == 0
    assert "paired by text" in capsys.readouterr().out
    for wrong, message in (
        (["--ablation", "nosuch"], "--ablation must be one of alpha"),
        (["--ablation", "spans", "--cells", "spans span=5"], "has no 'spans span=5'; there are rkv, spans,"),
        (["--ablation", "spans", "--ratios", "0.5"], "takes --budgets"),
        (["--ablation", "notch"], "needs a layer wave: --profile FILE"),
        (["--cells", "rkv"], "--cells are of --ablation"),
        (["--settings", "doubting"], "--settings are of --task"),
        (["--methods", "random", "--against", "rkv"], "--against must be one of the methods random"),
        (["--methods", "full,rkv", "--against", "full"], "--against: every figure is a distance from the full cache"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_doctor(folder, capsys):
    assert main(["doctor", "--model", folder, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    found = {x["what"]: x for x in result["checks"]}
    assert result["ok"] and found["its cache"]["state"] == "ok"
    assert _core.isa() in found["instruction sets"]["found"]


def test_doctor_finds_what_is_broken(folder, monkeypatch, capsys):
    monkeypatch.setenv("REASONALLOC_CPU", "abacus")
    monkeypatch.setattr("reasonalloc.cli.doctor.requires", lambda name: ["torch>=99", "no-such-package-here"])
    assert main(["doctor", "--json", "-"]) == 1
    found = {x["what"]: x["state"] for x in json.loads(capsys.readouterr().out)["checks"]}
    assert found["torch"] == found["no-such-package-here"] == "broken"
    assert found["REASONALLOC_CPU"] == "note"


def test_doctor_says_that_a_newer_transformers_was_not_tested(monkeypatch, capsys):
    version = importlib.metadata.version
    for found, state in (("5.24.0", "ok"), ("5.99.0", "note"), ("5.1.0", "broken")):
        monkeypatch.setattr(
            "reasonalloc.cli.doctor.version", lambda name, own=found: own if name == "transformers" else version(name)
        )
        assert main(["doctor", "--json", "-"]) == (state == "broken")
        checks = {x["what"]: x["state"] for x in json.loads(capsys.readouterr().out)["checks"]}
        assert checks["transformers"] == state and checks["adapter ledger-135m"] == "ok"


def test_doctor_on_a_model_without_full_attention(tmp_path, folder, capsys):
    build("mistral-sliding").save_pretrained(tmp_path / "sliding")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "sliding" / file).write_bytes((Path(folder) / file).read_bytes())
    assert main(["doctor", "--model", str(tmp_path / "sliding"), "--json", "-"]) == 1
    found = {x["what"]: x["found"] for x in json.loads(capsys.readouterr().out)["checks"]}
    assert "no layer has full attention" in found["its cache"]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["--"], "COMMAND"),
        (
            ["generate", "--prompt", "w1", "--budgets", "64"],
            "--budgets 64; did you mean --budget? (see reasonalloc generate --help)",
        ),
        (["evaluate", "fidelity", "--budget-s", "64"], "(see reasonalloc evaluate fidelity --help)"),
        (["evaluate", "accuracy", "--metods", "rkv"], "--metods rkv; did you mean --methods? (see"),
        (["evaluate", "accuracy", "--keep_prompt"], "--keep_prompt; did you mean --keep-prompt?"),
        (
            ["evaluate", "accuracy", "--methods", "full", "rkv"],
            "arguments: rkv; a list is written with commas, as in A,B",
        ),
        (["evaluate", "accuracy", "--methods", "full,", "rkv"], "--methods: an entry of the list is empty in 'full,'"),
        (
            ["evaluate", "accuracy", "--task", "ledgr"],
            "'ledgr' is unknown (did you mean 'ledger'?); there are ledger, ",
        ),
        (
            ["evaluate", "accuracy", "--task", "none.jsonl"],
            "the task's file 'none.jsonl' does not exist; tasks with a name",
        ),
        (["doctor", "smollm2"], "unrecognized arguments: smollm2 (see reasonalloc doctor --help)"),
        (
            ["study", "run", "x.yaml", "--model", "smollm2"],
            "arguments: --model smollm2 (see reasonalloc study run --help)",
        ),
        (["dance"], "dance"),
        (["generate", "--prompt", "w1", "--budget", "many"], "many"),
        (["generate", "--prompt", "w1", "--budget", "0"], "positive"),
        (["generate", "--prompt", "w1", "--budget", "64", "--ratio", "0.5"], "--ratio"),
        (["generate", "--prompt", "w1", "--ratio", "1.5"], "1.5"),
        (["generate", "--prompt", "w1"], "exactly one of budget"),
        (["generate", "--prompt", "w1", "--method", "full", "--budget", "64"], "keeps every token"),
        (["generate", "--prompt", "w1", "--method", "nosuch", "--budget", "64"], "nosuch"),
        (["generate", "--prompt", " ", "--budget", "64"], "empty"),
        (["generate", "--prompt", "w1", "--budget", "64", "--temperature", "0.5"], "--sample"),
        (["generate", "--prompt", "w1", "--budget", "64", "--sample", "--temperature", "0"], "above 0"),
        (["generate", "--prompt-file", "none.txt", "--budget", "64"], "none.txt"),
        (["generate", "--prompt", "w1", "--budget", "64", "--profile", "none.json"], "none.json"),
        (["generate", "--prompt", "w1", "--budget", "64", "--model", "./none"], "./none"),
        (["generate", "--prompt", "w1", "--max-bytes", "much"], "much"),
        (["generate", "--prompt", "x", "--budget", "9" * 30], "12 digits"),
        (["generate", "--prompt", "x", "--budget", "64", "--seed", "9" * 30], "18 digits"),
        (["generate", "--prompt", "x\udcff", "--budget", "64"], "the prompt: character 1 is U+DCFF"),
        (["profile", "--prompts", "9"], "1 to 8"),
        (["profile", "--prompts", "none.txt"], "none.txt"),
        (["demo", "--problems", "0"], "--problems"),
        (["demo", "--methods", "rkv,full"], "the full cache runs anyway"),
        (["demo", "--methods", "rkv,nosuch"], "nosuch"),
        (["demo", "--setting", "easy"], "'easy'"),
        (["demo", "--budget", "4"], "budget"),
        (["bench", "--runs", "0"], "--runs"),
        (["evaluate"], "WHAT"),
        (["evaluate", "accuracy", "--settings", ""], "an entry of the list is empty in ''"),
        (
            ["evaluate", "fidelity", "--against", "full", "--methods", "full,rkv", "--model", "./none"],
            "--against: every",
        ),
        (["evaluate", "fidelity", "--methods", "rkv,nosuch"], "nosuch"),
        (["evaluate", "fidelity", "--budgets", "64,x"], "'x'"),
        (["evaluate", "fidelity", "--json", "nowhere/a.json"], "'nowhere/a.json' is not a file"),
        (["evaluate", "fidelity", "--plot", "."], "--plot: '.' is a folder"),
        (["profile", "-o", "."], "--output: '.' is a folder"),
        (["calibrate", "-o", "."], "--output: '.' is a folder"),
        (["demo", "--out", "/dev/null"], "--out: '/dev/null' is no folder"),
        (["evaluate", "transfer", "--output", "/dev/null/a"], "cannot be made: '/dev/null' is no folder"),
        (["calibrate", "-o", "/dev/null/c.safetensors"], "cannot be made: '/dev/null' is no folder"),
        (["evaluate", "fidelity", "--plot", "/dev/null/deep/a.png"], "cannot be made: '/dev/null' is no folder"),
        (["report", "a.trace", "-o", "nowhere/a.html"], "'nowhere/a.html' is not a file in a folder that exists"),
        (["generate", "--prompt", "x", "--method", "rlkv", "--set", "options.gates=5"], "gates must be the name"),
        (["evaluate", "fidelity", "--problems", "501", "--model", "FOLDER"], "501"),
        (["evaluate", "fidelity", "--texts", "none.jsonl", "--model", "FOLDER"], "none.jsonl"),
    ],
)
def test_bad_input_is_one_line(command, complaint, folder, capsys):
    assert main([folder if x == "FOLDER" else x for x in command]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("reasonalloc: ") and err.count("\n") == 1 and complaint in err


def test_a_model_that_the_hub_does_not_give(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("nothing of this name")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(
        ValueError, match=r"loaded: nothing of this name .there is no folder 'ledger-135n' either; ledger-135m"
    ):
        load("ledger-135n")


def test_traceback_on_demand():
    with pytest.raises(ValueError, match="budget"):
        main(["--traceback", "generate", "--prompt", "w1"])


def test_completion(capsys):
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "reasonalloc" in script and "--keep-prompt" in script and "reasonalloc-wave" in script
    assert main(["completion", "fish"]) == 2


def test_ablations_are_listed(capsys):
    assert main(["ablate", "--list", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ablations"]["alpha"] in err
    assert main(["ablate"]) == 2
    assert "--list" in capsys.readouterr().err


def test_problems():
    assert len(math500()) == 500 and [x.id for x in math500(3)] == [x.id for x in math500()[:3]]
    assert math500(5, seed=1)[:2] == math500(2, seed=1) != math500(2)
    assert find("0") == math500(1)[0] == find(math500(1)[0].id)
    for bad in (0, 501):
        with pytest.raises(ValueError, match="500"):
            math500(bad)


def test_sampling_leaves_the_users_random_numbers_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert (
        main(["generate", "--model", folder, "--prompt", "w1", "--budget", "64", "--sample", "--max-new-tokens", "3"])
        == 0
    )
    assert torch.rand(1) == expected
