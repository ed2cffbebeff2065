"""Notebooks are in step with their scripts, and run at a small size on a tiny model, without a network."""

import json
import re
import runpy
from pathlib import Path

import pytest
from models import build

import reasonalloc as ra

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
NAMES = [x.stem for x in SCRIPTS]
RESULTS = FOLDER.parent / "benchmarks/results/ablations"
ABLATED = "parts"

for needed in ("IPython", "math_verify", "matplotlib", "scipy"):
    pytest.importorskip(needed, reason=f"notebooks need {needed}: pip install '.[notebooks]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a tokenizer that knows the words of ledger."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as tokenizer_models
    from transformers import PreTrainedTokenizerFast

    from reasonalloc.lab.tasks import ledger

    path = tmp_path_factory.mktemp("tiny")
    splitter = pre_tokenizers.Whitespace()
    text = " ".join(x.prompt + x.chain for x in ledger.problems(4, 0, ledger.GRID["restated"]))
    words = list(dict.fromkeys(word for word, _ in splitter.pre_tokenize_str(text)))
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *words][:97])}
    own = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    own.pre_tokenizer = splitter
    build("llama").save_pretrained(path)
    PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def small(folder, tmp_path, monkeypatch):
    """No notebook writes into the user's folders."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_CACHE_HOME"):
        (tmp_path / "own" / name.lower()).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / "own" / name.lower()))
    monkeypatch.setenv("REASONALLOC_NOTEBOOK_SIZE", "small")
    monkeypatch.setenv("REASONALLOC_NOTEBOOK_MODEL", folder)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda x: x.stem)
def test_both_forms_are_the_same(script):
    jupytext = pytest.importorskip("jupytext", reason="pip install '.[notebooks]'")
    pair = [jupytext.read(script.with_suffix(ending)) for ending in (".py", ".ipynb")]
    cells = [[(x.cell_type, x.source) for x in notebook.cells] for notebook in pair]
    assert cells[0] == cells[1], "run: jupytext --sync notebooks/[0-9]*.py"
    for notebook in pair:
        assert notebook.metadata["jupytext"]["formats"] == "ipynb,py:percent"


def test_no_notebook_without_a_script():
    assert sorted(x.stem for x in FOLDER.glob("*.ipynb")) == NAMES


PUBLIC = {"reasonalloc", "reasonalloc.lab.tasks"}  # what README shows


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda x: x.stem)
def test_only_the_public_api_is_imported(script):
    found = re.findall(r"^\s*(?:from|import) (reasonalloc[\w.]*)", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert found and set(found) <= PUBLIC


def run(script):
    """Runs a notebook's script here; gives its names and open figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.close("all")
    try:
        with matplotlib.rc_context():
            names = runpy.run_path(str(script), run_name="__main__")
        return names, [pyplot.figure(i) for i in pyplot.get_fignums()]
    finally:
        pyplot.close("all")


def ends_with_a_picture(figures):
    """Whether the last figure shows something, its axes labelled."""
    axes = [x for x in figures[-1].axes if x.get_label() != "<colorbar>"] if figures else []
    below = bool(axes) and (axes[-1].get_xlabel() or axes[-1].get_xticklabels())  # shared by those above it
    return below and all(x.has_data() and (x.get_ylabel() or x.get_yticklabels()) for x in axes)


@pytest.mark.parametrize("script", [x for x in SCRIPTS if "ablations" not in x.stem], ids=lambda x: x.stem)
def test_it_runs_and_ends_with_a_picture(script, register):
    _, figures = run(script)
    assert ends_with_a_picture(figures)


def test_all_committed_ablations_are_drawn(tmp_path):
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/ablations").symlink_to(RESULTS)
    names, figures = run(FOLDER / "07_ablations.py")
    there = [x for x in ra.ablations() if (RESULTS / f"{x}.json").is_file()]
    assert len(there) >= 14 and list(names["pictures"]) == there and ends_with_a_picture(figures)
    alpha = names["pictures"]["alpha"].axes[0]
    assert alpha.get_xlabel() == "alpha" and list(alpha.get_xticks()) == [0, 0.1, 0.3, 0.5, 1]


def test_ablations_without_results_say_how_to_make_them(capsys):
    _, figures = run(FOLDER / "07_ablations.py")
    out = capsys.readouterr().out
    assert not figures
    assert all(f"reasonalloc ablate {name} --output" in out for name in ra.ablations())


def test_ablations_draws_what_was_measured(folder, capsys):
    from reasonalloc.cli import main

    main(["ablate", ABLATED, "--model", folder, "--settings", "questions=1,depth=1,distractors=0", "--problems", "2",
          "--max-new-tokens", "12", "--budget", "16", "--interval", "8", "--output", "ablations-out"])  # fmt: skip
    names, figures = run(FOLDER / "07_ablations.py")
    assert list(names["results"]) == [ABLATED]
    assert list(names["pictures"]) == [ABLATED]
    assert ends_with_a_picture(figures)
    assert "reasonalloc ablate mu" in capsys.readouterr().out


@pytest.mark.slow
def test_a_notebook_runs_as_a_notebook(tmp_path):
    """In a kernel, through what `make notebooks` runs; the rest of them differ from their scripts in nothing."""
    for needed in ("nbclient", "ipykernel"):
        pytest.importorskip(needed, reason="pip install '.[notebooks]'")
    main = runpy.run_path(str(FOLDER / "run.py"))["main"]
    main(["07_ablations"])
    notebook = json.loads((tmp_path / "notebooks-out" / "07_ablations.ipynb").read_text(encoding="utf-8"))
    assert all(x["execution_count"] for x in notebook["cells"] if x["cell_type"] == "code")
