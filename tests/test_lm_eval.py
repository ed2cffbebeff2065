"""The model "reasonalloc" of lm-evaluation-harness, on tasks from local files."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import models
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint
from reasonalloc.lab.evaluate import forced_log_probs

pytest.importorskip("lm_eval", reason='lm-evaluation-harness is not installed: pip install ".[lm-eval]"')

import datasets
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.registry import Registry, get_model
from lm_eval.tasks import TaskManager

from reasonalloc.integrations.lm_eval.arguments import ArgumentError
from reasonalloc.integrations.lm_eval.model import ReasonAllocLM

GENERATE = """\
task: local_generate
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<end>"], max_gen_toks: 40, do_sample: false, eos_token_id: 1}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """\
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def words(count: int, first: int = 0) -> str:
    return " ".join(f"w{(first + i * 7) % 94}" for i in range(count))


QUESTIONS = [words(30), words(12, 3), words(21, 5)]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = ["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(94))]
    own = Tokenizer(tokenizer_models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=4096
    )


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A saved model with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    models.build("llama", eos_token_id=1).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks")
    rows = [{"question": x, "answer": "w1", "choices": [words(9, i), words(4, i + 1)]} for i, x in enumerate(QUESTIONS)]
    (path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, text in (("generate", GENERATE), ("choice", CHOICE)):
        (path / f"{name}.yaml").write_text(text.replace("DATA", str(path / "data.jsonl")), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test writes into the user's folders."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def make(tokenizer, name="llama", **settings):
    return ReasonAllocLM(models.tiny(name), tokenizer, **{"budget": 16, "interval": 8, **settings})


def evaluate(model, tasks, name, **options):
    manager = TaskManager(include_path=tasks, include_defaults=False)
    return lm_eval.simple_evaluate(
        model, tasks=[name], task_manager=manager, log_samples=True, bootstrap_iters=0, verbosity="ERROR", **options
    )


def scored(model, pairs):
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return model.loglikelihood(requests, disable_tqdm=True)


def answers(result, name):
    samples = sorted(result["samples"][name], key=lambda x: x["doc_id"])
    return [x["resps"][0][0] for x in samples]


def ids(tokenizer, text):
    return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids


def said(tokenizer, tokens):
    """As lm_eval reads it: up to the end, without special tokens."""
    end = tokens.tolist().index(1) if 1 in tokens else len(tokens)
    return tokenizer.decode(tokens[:end], skip_special_tokens=True)


# ---- Generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generation_is_that_of_install(tokenizer, tasks, batch_size):
    """Also in a batch, where the shorter questions are padded."""
    config = ra.Config(budget=16, interval=8)
    expected, plain = [], []
    for question in QUESTIONS:
        prompt = ids(tokenizer, question)
        options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 40, "do_sample": False}
        plain.append(models.tiny().generate(prompt, **options)[0, prompt.shape[1] :])
        with ra.install(models.tiny(), config):
            expected.append(models.tiny().generate(prompt, **options)[0, prompt.shape[1] :])
    result = evaluate(make(tokenizer, batch_size=batch_size), tasks, "local_generate")
    assert answers(result, "local_generate") == [said(tokenizer, x) for x in expected]
    assert answers(result, "local_generate") != [said(tokenizer, x) for x in plain]
    seen = result["config"]["reasonalloc"]
    assert seen["config"]["budget"] == 16
    assert seen["caches"]["generated"] == seen["caches"]["generated_with_eviction"] == (3 if batch_size == 1 else 1)
    assert seen["caches"]["evicted_slots"] > 0
    json.dumps(seen)


def test_without_eviction_generation_is_lm_evals_own(tokenizer, tasks, caplog):
    stock = lm_eval.models.huggingface.HFLM(models.tiny(), tokenizer=tokenizer, backend="causal", batch_size=3)
    ours = evaluate(make(tokenizer, budget=4096, batch_size=3), tasks, "local_generate")
    assert answers(ours, "local_generate") == answers(evaluate(stock, tasks, "local_generate"), "local_generate")
    assert "no generation evicted anything" in caplog.text


# ---- Log-likelihoods -------------------------------------------------------------------------------------------------

PAIRS = [(QUESTIONS[0], " " + words(30, 2)), (QUESTIONS[1], " w5"), (QUESTIONS[2], " " + words(11, 4))]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_scoring_goes_through_the_cache(tokenizer, name, batch_size):
    """The figures of one text alone, token by token; in batches too."""
    config = ra.Config(budget=12, interval=4)
    expected = []
    for context, continuation in PAIRS:
        prompt, text = ids(tokenizer, context)[0], ids(tokenizer, continuation)[0]
        steps = forced_log_probs(models.tiny(name), ra.ReasonAllocCache(models.tiny(name), config), prompt, text)
        log_probs = torch.stack(list(steps))
        total = float(log_probs.gather(-1, text[:, None]).sum())
        expected.append((total, bool((log_probs.argmax(-1) == text).all())))
    model = make(tokenizer, name, budget=12, interval=4, batch_size=batch_size)
    got = scored(model, PAIRS)
    assert [x[0] for x in got] == pytest.approx([x[0] for x in expected], abs=1e-3)
    assert [x[1] for x in got] == [x[1] for x in expected]

    full = scored(make(tokenizer, name, method="full", budget=None, batch_size=batch_size), PAIRS)
    assert abs(got[0][0] - full[0][0]) > 0.01  # eviction shows ...
    assert got[1][0] == pytest.approx(full[1][0], abs=1e-3)  # ... but not in a single token
    assert model.figures.scored_tokens == 42 and 30 < model.figures.scored_after_eviction <= 39


def test_evictions_are_counted_for_the_row_they_happen_in(tokenizer):
    pairs = [(QUESTIONS[0], " " + words(30, 2)), ("w1", " w2 w3 w4")]
    counts = []
    for given in (pairs[:1], pairs[1:], pairs):
        model = make(tokenizer, budget=16, interval=4, batch_size=2)
        scored(model, given)
        counts.append(model.figures.scored_after_eviction)
    assert counts[0] > 0 and counts[1] == 0 and counts[2] == counts[0]


def test_scoring_without_eviction_is_the_single_pass(tokenizer):
    single = scored(make(tokenizer, loglikelihood="full", batch_size=2), PAIRS)
    stock = lm_eval.models.huggingface.HFLM(models.tiny(), tokenizer=tokenizer, backend="causal", batch_size=2)
    assert single == scored(stock, PAIRS)
    held = make(tokenizer, budget=4096, batch_size=2)
    forced = scored(held, PAIRS)
    assert [x[0] for x in forced] == pytest.approx([x[0] for x in single], abs=1e-3)
    assert held.figures.scored_after_eviction == 0


def test_greedy_continuations_are_noticed(tokenizer):
    prompt = ids(tokenizer, QUESTIONS[0])
    with ra.install(models.tiny(), ra.Config(budget=16, interval=8)):
        tokens = models.tiny().generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=15, do_sample=False
        )[0, 30:]
    right = " " + tokenizer.decode(tokens)
    got = scored(make(tokenizer, batch_size=2), [(QUESTIONS[0], right), (QUESTIONS[0], right + " w3 w3")])
    assert [x[1] for x in got] == [True, False]


def test_perplexity_streams_through_the_cache(tokenizer):
    text = words(60, 2)
    model = make(tokenizer)
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    total = model.loglikelihood_rolling([request], disable_tqdm=True)[0]
    end, given = torch.tensor([tokenizer.eos_token_id]), ids(tokenizer, text)[0]
    cache = ra.ReasonAllocCache(models.tiny(), ra.Config(budget=16, interval=8))
    steps = torch.stack(list(forced_log_probs(models.tiny(), cache, end, given)))
    assert total == pytest.approx(float(steps.gather(-1, given[:, None]).sum()), abs=1e-3)


def test_multiple_choice_task(tokenizer, tasks):
    result = evaluate(make(tokenizer, batch_size=4), tasks, "local_choice")
    assert 0 <= result["results"]["local_choice"]["acc,none"] <= 1
    assert result["config"]["reasonalloc"]["loglikelihood"] == "through the cache"
    assert result["config"]["reasonalloc"]["caches"]["scored_after_eviction"] > 0


def test_a_context_too_long_is_cut_from_the_left(tokenizer):
    short = scored(make(tokenizer, max_length=20), [(words(60), " " + words(5, 1))])
    same = scored(make(tokenizer), [(words(60).split(" ", 44)[-1], " " + words(5, 1))])
    assert short[0][0] == pytest.approx(same[0][0], abs=1e-3)
    with pytest.raises(ValueError, match="longer than"):
        scored(make(tokenizer, max_length=4), [("w1", " " + words(5, 1))])


def test_tokens_of_one_are_warned_about(tokenizer, caplog):
    model = make(tokenizer)
    scored(model, [(QUESTIONS[0], " w5")])
    model.get_model_info()
    assert "no scored token came after an eviction" in caplog.text


# ---- Arguments and the command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nosuch": 1}, "unknown model argument 'nosuch'.*budget"),
        ({"method": "nosuch"}, "nosuch"),
        ({"budget": None}, "exactly one of budget, ratio and max_bytes"),
        ({"ratio": 0.5}, "exactly one of budget, ratio and max_bytes"),
        ({"budget": 16.5}, "budget must be a whole number, got 16.5"),
        ({"profile": "nosuch.json"}, r"nosuch\.json"),
        ({"profile": 3}, "WaveProfile"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"batch_size": "auto"}, "batch_size must be a whole number.*'auto'"),
        ({"loglikelihood": "half"}, "loglikelihood must be one of cache, full, got 'half'"),
    ],
)
def test_wrong_arguments_are_refused_before_the_model_is_loaded(settings, said, monkeypatch):
    monkeypatch.setattr("reasonalloc.integrations.lm_eval.model.load", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(ArgumentError, match=said) as error:
        ReasonAllocLM("smollm2", **{"budget": 16, **settings})
    assert "\n" not in str(error.value)


def test_models_that_cannot_be_had_are_refused(tokenizer):
    with pytest.raises(ArgumentError, match="pretrained"):
        ReasonAllocLM(budget=16)
    with pytest.raises(ArgumentError, match="/no/such"):
        ReasonAllocLM("/no/such", budget=16)
    with pytest.raises(ArgumentError, match="tokenizer"):
        ReasonAllocLM(models.tiny(), budget=16)
    with pytest.raises(ArgumentError, match="tokenizer"):
        ReasonAllocLM("smollm2", tokenizer, budget=16)
    with pytest.raises(ValueError, match="Mistral"):
        make(tokenizer, "mistral-sliding")


def test_arguments_come_as_lm_eval_gives_them(folder, tmp_path):
    """Through the registry, as text, with what the command line adds."""
    ra.WaveProfile((1.0, 5.0, 2.0), (0, 1, 2), fingerprint(models.tiny())).save(tmp_path / "w.json")
    text = f"pretrained={folder},method=reasonalloc,ratio=0.5,interval=4,profile={tmp_path / 'w.json'},max_length=512"
    model = get_model("reasonalloc").create_from_arg_string(text, {"batch_size": "2", "device": None})
    assert type(model) is ReasonAllocLM and model.batch_size == 2 and model.max_length == 512
    assert model.cache_config.ratio == 0.5 and model.cache_config.profile.demand == (1.0, 5.0, 2.0)
    assert model.figures.generated == 0


def test_releases_with_plugins_find_it():
    """They read this group of entry points, and resolve each as any placeholder of their registry."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    points = project["project"]["entry-points"]["lm_eval.models"]
    assert list(points) == ["reasonalloc"]
    registry = Registry("model", base_cls=lm_eval.api.model.LM)
    registry.register("reasonalloc", target=EntryPoint("reasonalloc", points["reasonalloc"], "lm_eval.models"))
    assert registry.get("reasonalloc") is ReasonAllocLM
    assert points["reasonalloc"] == f"{ReasonAllocLM.__module__}:{ReasonAllocLM.__name__}"


def run(*arguments):
    command = [sys.executable, "-m", "reasonalloc.integrations.lm_eval", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_command(folder, tasks, tmp_path):
    given = f"pretrained={folder},method=rkv,budget=16,interval=8"
    done = run(
        "--model", "reasonalloc", "--model_args", given, "--tasks", "local_generate", "--include_path", tasks,
        "--batch_size", "2", "--output_path", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "local_generate" in done.stdout and "exact_match" in done.stdout
    (written,) = (tmp_path / "out").rglob("results_*.json")
    seen = json.loads(written.read_text())["config"]["reasonalloc"]
    assert seen["config"]["method"] == "rkv" and seen["caches"]["evicted_slots"] > 0

    wrong = run("--model", "reasonalloc", "--model_args", "pretrained=x,budgets=16", "--tasks", "local_generate",
                "--include_path", tasks)  # fmt: skip
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("reasonalloc: unknown model argument 'budgets'")
    assert "Traceback" not in wrong.stderr
