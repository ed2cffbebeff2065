"""Pages that docs/generate.py makes of the code and of the results say what these say."""

import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import models
import pytest
import yaml

import reasonalloc as ra
from reasonalloc.cli import main, settings
from reasonalloc.lab.tasks import TASKS
from reasonalloc.policy.calibration import SYSTEMS
from reasonalloc.policy.heads import HEADS
from reasonalloc.policy.layers import LAYERS
from reasonalloc.policy.scorers import SCORERS, CoreScorer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import generate  # noqa: E402


@pytest.fixture
def needed(tmp_path, monkeypatch):
    """The files that pages name are there."""
    monkeypatch.chdir(tmp_path)
    Path("gates.tsv").write_text("0.5 1.0\n")
    text = ["some words to learn from"]
    ra.calibrate(models.tiny(), models.Words(), text, progress=False).save("calibration.safetensors")


def test_pages_of_systems(needed):
    for name in ra.methods():
        page = generate.system_page(name)
        assert generate.first_sentence(generate.doc(name)) in " ".join(page.split())
        assert f'method="{name}"' in page and (ROOT / generate.source(name)).is_file()
        exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    assert "100%" in generate.system_page("full") and "54%" in generate.system_page("reasonalloc")


def test_what_systems_yaml_says_is_of_something_that_there_is():
    names = {x for path in (ROOT / "csrc/stat").glob("*.c") for x in re.findall(r'\.name = "(.*?)"', path.read_text())}
    assert set(generate.SYSTEMS["costs"]) == names
    assert set(generate.SYSTEMS["published"]) | set(generate.SYSTEMS["remarks"]) <= set(ra.methods())
    assert all(re.search(r"arXiv \d{4}\.\d{5}", x) for each in generate.SYSTEMS["published"].values() for x in each)


def test_costs(needed):
    assert "nearest-key: 12 bytes" in generate.cost("rkv") and "queries of the newest" in generate.cost("vatp")
    for name in ra.methods():
        sized = {} if name in ("full", "rlkv", "duo") else {"budget": 64}
        scorer = ra.Config(method=name, **sized, **setting(name)).policy().scorer
        assert isinstance(scorer, CoreScorer) != ("in Python" in generate.cost(name)), name


def setting(name):
    """Of the command that measures a method."""
    words = shlex.split(generate.measure(name))
    assert words[:5] == ["reasonalloc", "evaluate", "accuracy", "--methods", f"full,{name}"]
    return settings.parse([x for x in words[5:] if x != "--set"])


def test_a_method_without_figures_says_how_to_measure_it(needed):
    for name in ("rlkv", "duo", "triattention"):
        assert f"Nothing yet. `{generate.measure(name)}`" in generate.system_page(name)
        assert setting(name)
    assert "Nothing yet" in generate.system_page("dkv") and setting("dkv") == {}


def test_figures_of_a_page_say_in_which_dtype_and_with_which_window():
    rows = generate.answers("vase")
    assert [x[0].count("window 128") for x in rows] == [0, 1] and {x[-1] for x in rows} == {"float32"}
    assert {x[-1] for x in generate.answers("rkv")} == {"bfloat16", "float32"}


def test_what_fell_is_told_beside_the_figures():
    page = generate.system_page("h2o")
    assert "90%" in page and "newest tokens alone" in page and "../results.md#the-newest-tokens" in page


def test_pages_of_the_reference():
    assert "typedef struct ra_layer ra_layer;" in generate.header_page()
    page = generate.cli_page()
    assert "## evaluate accuracy" in page and "--dry-run" in page
    stats, config = generate.stats_page(), generate.config_page()
    assert (
        "| `lost_mass` | `float` |" in stats
        and "| `seconds` | `Seconds` |" in stats
        and "| `score` | `float` |" in stats
    )
    assert "`list[list[list[int]]]`" in stats and "ForwardRef" not in stats and "class" not in stats
    assert "| `safeguard` | `float` | `0.2` | 0 to 1 |" in config and "| `'same'` or `'int8'` |" in config


# ---- what pages, docstrings and help say by hand ----


def test_papers_of_all_methods_are_cited_with_their_authors():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    cited = {x["url"].removeprefix("https://arxiv.org/abs/"): x for x in citation["references"]}
    named = {paper for name in ra.methods() for paper in re.findall(r"arXiv (\d{4}\.\d{5})", generate.doc(name))}
    assert named - {"2512.07993"} == set(cited)  # SkipKV, which `spans` says that it is not
    for paper, entry in cited.items():
        assert entry["year"] >= 2000 + int(paper[:2]) and len(entry["title"]) > 20, paper
        assert all(set(x) == {"family-names", "given-names"} for x in entry["authors"]), paper


def test_docstrings_name_what_there_is():
    config, evaluate = ra.Config.__doc__, ra.evaluate.__doc__
    for registry in (SCORERS, LAYERS, HEADS):
        for name, cls in registry.classes.items():
            assert f'"{name}"' in config or not cls.__module__.startswith("reasonalloc."), name
    assert all(f'"{task}"' in evaluate for task in TASKS)


def test_help_tells_systems_from_methods_and_settings_of_both_tasks(capsys):
    def shown(*words):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        return " ".join(capsys.readouterr().out.split())

    text = shown("calibrate")
    here, others = (re.search(rf"{x}: ([\w, ]+);", text)[1].split(", ") for x in ("Methods", "no methods here"))
    assert set(here) <= set(ra.methods()) and not set(others) & set(ra.methods())
    assert {*here, *others} == set(SYSTEMS)
    for words in (("evaluate", "accuracy"), ("evaluate", "fidelity")):
        assert "of search: short, middle, long" in shown(*words)


def test_methods_names_the_parts_with_options():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    sentence = re.search(r"what only some parts know is in `options`: (.*?)\. ", text, re.DOTALL)
    keywords = {f.name for f in fields(ra.Config)}
    have = {
        name
        for registry in (SCORERS, LAYERS, HEADS)
        for name, cls in registry.classes.items()
        if any(f.init and f.name not in keywords for f in fields(cls)) and cls.__module__.startswith("reasonalloc.")
    }
    assert sentence and set(re.findall(r"`([^`]+)`", sentence[1])) == have


def test_folders_of_studies_are_all_named():
    """In benchmarks/README.md, those with the results of a study file or of a plan."""
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    sentence = re.search(r"their results are in `results/`, a folder each: (.*?)\. ", text, re.DOTALL)
    others = {"ablations", "fidelity-notch", "kernels-avx2", "paper", "restated", "rlkv", "transfer"}
    there = {x.name for x in (ROOT / "benchmarks" / "results").iterdir() if x.is_dir()}
    assert sentence and set(re.findall(r"`([^`]+)`", sentence[1])) == there - others
