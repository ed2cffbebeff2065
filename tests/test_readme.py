"""What README and docs/ show is true: code runs, figures are those of the results, links lead somewhere."""

import argparse
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
from reasonalloc.cli import parser as command_line
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
    pair[1].chat_template = "{{ messages[0]['content'] }}"
    monkeypatch.setattr("reasonalloc.lab.models.load", lambda *args, **options: pair)
    for name in ("scipy", "math_verify", "matplotlib"):
        pytest.importorskip(name)


ALONE = ["start.md", "batches.md", "own-task.md", "coming-from.md", "how-it-works.md"]  # blocks stand by themselves
# Pages whose blocks run when they are pasted one after the other, with what is asked less of a tiny model.
PASTED: dict[str, dict[str, str]] = {
    "README.md": {
        "max_new_tokens=600": "max_new_tokens=60",
        "[problem.prompt])": "[problem.prompt], max_new_tokens=8, progress=False)",
        "budgets=": "max_new_tokens=8, problems=1, progress=False, budgets=",
    },
    "docs/calibration.md": {},
    "docs/cuda.md": {},
    "docs/evaluation.md": {"budget=256": "budget=24, max_new_tokens=40"},
    "docs/methods.md": {},
    "docs/prefix.md": {"max_new_tokens=512)": "max_new_tokens=8, do_sample=False)\n    outputs.append(output)"},
    "docs/rlkv.md": {},
    "docs/traces.md": {"max_new_tokens=300": "max_new_tokens=160"},
}


def pasted(page, names=()):
    """The names that a page's blocks leave behind."""
    found: dict = {"__name__": "__main__", **dict(names)}
    code = blocks(page)
    for text, less in PASTED[page].items():
        assert any(text in x for x in code), f"{page} has no {text}"
        code = [x.replace(text, less) for x in code]
    for block in code:
        exec(block.replace("past_key_values", CACHE_NAME), found)
    return found


@pytest.mark.parametrize("page", ALONE)
def test_blocks_that_stand_by_themselves_run(page, small):
    for code in blocks(f"docs/{page}"):
        exec(code, {"__name__": "__main__"})


def test_every_block_is_run_by_a_test_here():
    have = {page.relative_to(ROOT).as_posix() for page in PAGES if blocks(page.relative_to(ROOT))}
    assert have == {f"docs/{page}" for page in ALONE} | set(PASTED)


def test_readme(small):
    names = pasted("README.md")
    assert names["session"].last_cache.stats()["steps"] and names["config"].profile == names["profile"]
    cache = ra.ReasonAllocCache(names["model"], names["config"])
    names["model"].generate(models.prompt(300), max_new_tokens=4, do_sample=False, **cache_argument(cache))
    assert cache.stats()["routings"] == 1 and cache.stats()["wave"] == "profile"
    assert Path("accuracy.png").is_file() and len(names["results"].rows) == 5


def test_a_calibration(small):
    names = pasted("docs/calibration.md")
    assert names["cache"].config.calibration == names["calibration"]


def test_through_the_hub(small, monkeypatch):
    monkeypatch.chdir(ROOT)
    pasted("docs/evaluation.md")


def test_a_graph_of_a_pass(folder, monkeypatch):  # noqa: F811
    gpu = torch.cuda.is_available()
    pair = load(folder, device_map="cuda" if gpu else None)
    monkeypatch.setattr("reasonalloc.lab.models.load", lambda *args, **options: pair)
    if gpu:
        names = pasted("docs/cuda.md")
        assert names["logits"].shape == (1, names["model"].config.vocab_size)
    else:
        with pytest.raises(ValueError, match="lies in host memory"):
            pasted("docs/cuda.md")


def test_methods(small, register):
    names = pasted("docs/methods.md")
    assert [names[x].policy().scorer.name for x in ("h2o", "faded", "lazy")] == ["h2o", "h2o", "lazy"]
    shares = ra.Config(method="rkv", heads="profile", calibration=names["heads"], budget=64)
    assert ra.ReasonAllocCache(names["model"], shares).policy.heads.table is not None
    parts: dict = {}
    exec(blocks("docs/methods.md")[0], parts)
    own = blocks("docs/methods.md")[3]
    assert len([line for line in own.splitlines() if line.strip()]) <= 15
    model = models.tiny()
    for config in (parts["config"], names["config"], names["borrowed"]):
        cache = ra.ReasonAllocCache(model, config)
        model.generate(models.prompt(200), max_new_tokens=4, do_sample=False, **cache_argument(cache))
        assert cache.stats()["evicted"] > 0


def test_the_config_of_gates(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert pasted("docs/rlkv.md")["config"].policy().heads.sparsity == 0.4


def test_traces_are_recorded_and_replayed(small):
    names = pasted("docs/traces.md")
    assert Path("a.trace").is_file()
    new = names["out"].shape[1] - names["inputs"].input_ids.shape[1]
    assert (
        len(names["log_probs"]) == new - 1
    )  # before each token of the chain but the last, which the cache was not given
    assert torch.isfinite(torch.stack(names["log_probs"])).all()


def test_a_prompt_is_read_once_for_many_answers(small):
    outputs: list = []
    names = pasted("docs/prefix.md", {"outputs": outputs})
    model, tokenizer, prompt = (names[x] for x in ("model", "tokenizer", "prompt"))
    assert len(outputs) == len(names["questions"]) == 2
    for question, output in zip(names["questions"], outputs, strict=True):
        alone = ra.ReasonAllocCache(model, ra.Config(method="reasonalloc", budget=256))
        models.step(model, alone, tokenizer(prompt, return_tensors="pt").input_ids)
        assert alone.stats()["evicted"]
        slots = alone.stats()["slots"]
        ids = tokenizer(prompt + question, return_tensors="pt").input_ids
        assert torch.equal(output, model.generate(ids, max_new_tokens=8, do_sample=False, **cache_argument(alone)))
    assert names["cache"].stats()["slots"] == slots  # of the file


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


def commands(parser, name=""):
    """Every command's parser, by its words."""
    below = [x for x in parser._actions if isinstance(x, argparse._SubParsersAction)]
    found = {} if below else {name: parser}
    for action in below:
        for word, inner in action.choices.items():
            found |= commands(inner, f"{name} {word}".strip())
    return found


def test_the_commands_and_what_they_have_in_common():
    every = commands(command_line())
    told = README.partition("Without writing code:")[2].partition("\n\n")[0]
    listed = re.search(r"`reasonalloc (.*?)`", told)[1].split(" | ")
    assert set(listed) == {"study" if x.startswith("study ") else x for x in every}
    has = {x: [name for name, y in every.items() if x in y._option_string_actions] for x in ("--set", "--dry-run")}
    some, dry = told.partition("`--set NAME=VALUE` with")[2].split("`--dry-run` with")
    assert re.findall(r"`(.*?)`", some) == sorted(has["--set"], key=some.index)
    assert re.findall(r"`(.*?)`", dry) == sorted(has["--dry-run"], key=dry.index)
    without = {x for x, parser in every.items() if "--json" not in parser._option_string_actions}
    assert without == {"study show", "completion"}


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
