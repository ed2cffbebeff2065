"""What README and docs/ show is true: code runs, figures are those of the results, links lead somewhere."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import models
import pytest
import torch
from test_cli import folder  # noqa: F401  (a fixture)

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.hf.compat import CACHE_NAME, cache_argument
from reasonalloc.lab.evaluate.grading import grade
from reasonalloc.lab.models import load, missing_for_embedded
from reasonalloc.lab.tasks import items

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
sys.path.insert(0, str(ROOT / "docs"))
import generate  # noqa: E402

README = PAGES[0].read_text(encoding="utf-8")


def blocks(page):
    """The Python code of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


# ---- code ----


@pytest.mark.slow
def test_the_first_example_runs_as_it_is_pasted(capsys):
    if missing := missing_for_embedded():
        pytest.skip(f"not installed: {', '.join(missing)}")
    names: dict = {"__name__": "__main__"}
    exec(blocks("README.md")[0], names)
    said = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert said and alike(capsys.readouterr().out) == alike(said[1])
    stats, problem, new = names["session"].last_cache.stats(), names["problem"], names["output"].shape[1]
    assert stats["evicted"] > 0 and new - names["inputs"].input_ids.shape[1] < 600  # it ended by itself
    assert all(grade(names["chain"], problem.answers, problem.asked).right)
    assert names["model"].config._attn_implementation == "sdpa"  # undone


def alike(shown):
    """What is printed, without the bytes and slots, in which processors may differ a little."""
    *lines, stats = shown.strip().splitlines()
    return [*lines, re.sub(r"\d[\d,.]*", "0", stats)]


def test_the_output_shown_is_of_the_problem_asked():
    """Without the model: its names and numbers are the problem's, and the chain ended before it was cut off."""
    setting = re.search(r'count=6, settings=\["(.*?)"\]', README)
    said = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert setting and said
    problem = items("ledger", count=6, settings=[setting[1]])[5]
    lines = said[1].splitlines()
    assert grade("\n".join(lines[:2]), problem.answers, problem.asked).right == [True, True]
    assert lines[2] == f"right: {dict(zip(problem.asked, problem.answers, strict=True))}"
    assert alike(said[1])[-1].startswith("<CacheStats reasonalloc: 0 MiB now, 0 at its peak;")
    steps = re.search(r"(\d+) steps", lines[3])
    assert steps and int(steps[1]) < 600


@pytest.fixture
def small(folder, tmp_path, monkeypatch):  # noqa: F811
    """A tiny model in place of those that the pages load; files go into a folder of their own."""
    monkeypatch.chdir(tmp_path)
    pair = load(folder)
    monkeypatch.setattr("reasonalloc.lab.models.load", lambda *args, **options: pair)
    for name in ("scipy", "math_verify", "matplotlib"):
        pytest.importorskip(name)


ALONE = ["start.md", "batches.md", "own-task.md", "coming-from.md", "how-it-works.md"]  # blocks stand by themselves


@pytest.mark.parametrize("page", ALONE)
def test_blocks_that_stand_by_themselves_run(page, small):
    for code in blocks(f"docs/{page}"):
        exec(code, {"__name__": "__main__"})


def test_a_calibration(small):
    names: dict = {"__name__": "__main__"}
    exec(blocks("docs/calibration.md")[0], names)
    assert names["cache"].config.calibration == names["calibration"]


def test_a_study_in_one_call(small):
    names: dict = {"ra": ra}
    exec(blocks("README.md")[2].replace("budgets=", "max_new_tokens=8, problems=1, progress=False, budgets="), names)
    assert Path("accuracy.png").is_file() and len(names["results"].rows) == 5


def test_through_the_hub(monkeypatch):
    monkeypatch.chdir(ROOT)
    model = models.tiny()
    exec(blocks("docs/evaluation.md")[0].replace("=256", "=24, max_new_tokens=4"), {"model": model, "inputs": {
        "input_ids": models.prompt(60)}})  # fmt: skip


def test_a_config_for_a_gpu():
    names = {"ra": ra}
    exec(blocks("docs/cuda.md")[0], names)
    assert names["config"].device == "model"


def test_a_graph_of_a_pass():
    gpu = torch.cuda.is_available()
    model = models.tiny().to("cuda" if gpu else "cpu")
    cache = ra.ReasonAllocCache(model, ra.Config(budget=24, window=4, device="model" if gpu else "cpu"))
    with torch.no_grad():
        model(models.prompt(30).to(model.device), past_key_values=cache)
    names = {"model": model, "cache": cache, "ids": torch.tensor([5], device=model.device)}
    if gpu:
        exec(blocks("docs/cuda.md")[1], names)
        assert names["logits"].shape == (1, model.config.vocab_size)
    else:
        with pytest.raises(ValueError, match="keeps layers on a GPU"):
            exec(blocks("docs/cuda.md")[1], names)


def test_configs_of_gathered_statistics():
    names = {"ra": ra}
    exec(blocks("docs/methods.md")[1], names)
    assert [names[x].policy().scorer.name for x in ("h2o", "faded", "lazy")] == ["h2o", "h2o", "lazy"]


def test_measured_head_shares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = models.tiny()
    names = {"ra": ra, "model": model, "tokenizer": models.Words(), "prompts": ["one two three"]}
    exec(blocks("docs/methods.md")[2], names)
    cache = ra.ReasonAllocCache(model, names["config"])
    assert cache.policy.heads.table is not None


def test_the_config_of_gates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("adapter_weights.tsv").write_text("0.5 1.0\n")
    names = {"ra": ra}
    exec(blocks("docs/rlkv.md")[0], names)
    assert names["config"].policy().heads.sparsity == 0.4


def test_every_block_is_run_by_a_test_here():
    here = {page.relative_to(ROOT).as_posix(): len(blocks(page.relative_to(ROOT))) for page in PAGES}
    others = {"README.md": 3, "docs/methods.md": 4, "docs/traces.md": 2, "docs/prefix.md": 2, "docs/evaluation.md": 1}
    others |= {"docs/cuda.md": 2, "docs/rlkv.md": 1, "docs/calibration.md": 1}
    alone = {f"docs/{page}" for page in ALONE}
    assert {page: n for page, n in here.items() if n and page not in alone} == others
    assert all(here[page] for page in alone)


def test_a_profile_of_ones_own(monkeypatch):
    names = {"ra": ra, "model": models.tiny(), "tokenizer": models.Words(), "prompts": ["one two three"]}
    exec(blocks("README.md")[1].replace("prompts)", "prompts, max_new_tokens=8, progress=False)"), names)
    cache = ra.ReasonAllocCache(names["model"], names["config"])
    names["model"].generate(models.prompt(300), max_new_tokens=4, do_sample=False, **cache_argument(cache))
    assert cache.stats()["routings"] == 1
    assert cache.stats()["wave"] == "profile"


def test_a_method_out_of_parts():
    names: dict = {}
    exec(blocks("docs/methods.md")[0], names)
    model = models.tiny()
    cache = ra.ReasonAllocCache(model, names["config"])
    model.generate(models.prompt(200), max_new_tokens=4, do_sample=False, **cache_argument(cache))
    assert cache.stats()["evicted"] > 0


def test_a_method_of_ones_own_runs(register):
    code, model = blocks("docs/methods.md")[3], models.tiny()
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    names: dict = {"__name__": "readme"}
    exec(code, names)
    for name in ("config", "borrowed"):
        cache = ra.ReasonAllocCache(model, names[name])
        model.generate(models.prompt(200), max_new_tokens=4, do_sample=False, **cache_argument(cache))
        assert cache.stats()["evicted"] > 0


def test_traces_are_recorded_and_replayed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, prompt = models.tiny(), models.prompt(300)
    inputs = {"input_ids": prompt, "max_new_tokens": 8, "do_sample": False}
    names = {"ra": ra, "model": model, "tokenizer": None, "inputs": inputs}
    names["config"] = ra.Config("rkv", budget=128)
    first, second = blocks("docs/traces.md")
    exec(first.replace("1000", "200"), names)
    assert Path("a.trace").is_file()
    exec(second, names)
    assert len(names["log_probs"]) == 7  # before each token of the chain but the last, which the cache was not given
    assert torch.isfinite(torch.stack(names["log_probs"])).all()


def test_a_prompt_is_read_once_for_many_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, words = models.tiny(), models.Words()
    prompt, questions = "what stands in a long prompt " * 20, ["first question", "another one"]
    names = {"model": model, "prompt": prompt, "questions": questions}
    names["tokenizer"] = lambda text, return_tensors: {"input_ids": words(text).input_ids}
    first, second = blocks("docs/prefix.md")
    outputs: list = []
    first = first.replace("past_key_values", CACHE_NAME).replace("=512)", "=8, do_sample=False)")
    first += "    outputs.append(output)\n"
    exec(first, names | {"outputs": outputs})
    assert len(outputs) == 2
    for question, output in zip(questions, outputs, strict=True):
        alone = ra.ReasonAllocCache(model, ra.Config(method="reasonalloc", budget=256))
        models.step(model, alone, words(prompt).input_ids)
        assert alone.stats()["evicted"]
        ids = words(prompt + question).input_ids
        assert torch.equal(output, model.generate(ids, max_new_tokens=8, do_sample=False, **cache_argument(alone)))
    names |= {"ra": ra, "cache": alone}
    exec(second, names)
    assert names["cache"] is not alone
    assert names["cache"].stats()["slots"] == alone.stats()["slots"]


# ---- what is said ----


def test_the_first_screen_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(("page", "name"), generate.BLOCKS)
def test_tables_are_up_to_date(page, name):
    """`python docs/generate.py` renews them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert generate.renewed(text, name, generate.BLOCKS[page, name]()) == text


def test_versions_are_one():
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation and citation[1] == ra.__version__
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]


def test_the_commands_exist(capsys):
    listed = re.search(r"`reasonalloc ([a-z |\n]+)`, each\s+with `--help`", README)
    assert listed
    for words in listed[1].split("|"):
        with pytest.raises(SystemExit) as stop:
            main([*words.split(), "--help"])
        assert stop.value.code == 0
        assert "usage" in capsys.readouterr().out


def test_nothing_is_promised_of_an_index_that_does_not_have_it():
    command = ["git", "ls-files", "*.md", "reasonalloc/*.py", "notebooks/*"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for page in listed.split() or [str(x) for x in PAGES]:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not re.search(r"pip install [\"']?reasonalloc", text), page


# ---- links ----


def anchors(page):
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda x: x.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
