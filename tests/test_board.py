"""The board's entries have its form and are those of the results, its page shows them."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

BOARD = Path(__file__).parents[1] / "benchmarks" / "board"
RESULTS = BOARD.parent / "results"
build = runpy.run_path(str(BOARD / "build.py"))
ENTRIES = sorted((BOARD / "entries").rglob("*.json"))


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="pip install '.[dev]'")
    schema = json.loads((BOARD / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", ENTRIES, ids=lambda x: f"{x.parent.name}/{x.stem}")
def test_an_entry_has_the_form(path, validator):
    entry = json.loads(path.read_text())
    validator.validate(entry)
    assert entry["score"]["low"] <= entry["score"]["mean"] <= entry["score"]["high"]
    assert entry["bytes"]["mean"] <= entry["bytes"]["peak"]
    if not entry["data"].startswith("https://"):
        assert (BOARD.parents[1] / entry["data"]).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.pop("commit"),
        lambda x: x.update(schema=1),
        lambda x: x["score"].update(mean=64.2),
        lambda x: x["bytes"].update(mean=0),
        lambda x: x.update(machines=["a large one"]),
        lambda x: x.update(remark="best of ten runs"),
    ],
)
def test_what_is_not_of_the_form_is_refused(change, validator):
    entry = json.loads(ENTRIES[0].read_text())
    assert validator.is_valid(entry)
    change(entry)
    assert not validator.is_valid(entry)


@pytest.mark.parametrize("folder", build["OURS"])
def test_ours_are_the_results(folder):
    """`python benchmarks/board/build.py` renews them."""
    own = {x.stem: json.loads(x.read_text()) for x in (BOARD / "entries" / folder).glob("*.json")}
    name, cells = build["OURS"][folder]
    commits = {x["commit"] for x in own.values()}
    assert len(commits) == 1
    results = json.loads((RESULTS / f"{name}.json").read_text())
    data = f"benchmarks/results/{name.split('/')[0]}"
    assert own == build["entries"](results, commits.pop(), build["US"], data, cells)
    assert len(own) == len(cells or results["rows"])


def test_ours_are_all_named():
    sentence = (BOARD / "README.md").read_text(encoding="utf-8").partition("`entries/")[2].partition(" are ours")[0]
    named = re.findall(r"`(?:entries/)?([\w-]+)`", "`entries/" + sentence)
    assert set(named) == set(build["OURS"]) == {x.name for x in (BOARD / "entries").iterdir()}


def test_machines_are_those_of_the_chains():
    every = [json.loads(x.read_text())["machines"] for x in (BOARD / "entries" / "evidence").iterdir()]
    runs = json.loads((RESULTS / "evidence" / "runs.json").read_text())
    gpus = {gpu for run in runs for gpu in run["machine"]["gpus"]}
    assert len(gpus) == 2 and all({gpu for x in machines for gpu in x["gpus"]} == gpus for machines in every)


def test_settings_are_read_out_of_the_command():
    read = build["settings_of"]
    accuracy = "/x/reasonalloc evaluate accuracy --task ledger"
    assert read(f"{accuracy} --set alpha=0.5 --set mu=0 --interval 64", "math500") == {
        "alpha": 0.5,
        "mu": 0.0,
        "interval": 64,
    }
    assert read(f"{accuracy} --interval=64 --keep-p", "ledger") == {"interval": 64, "keep_prompt": True}
    assert read(f"{accuracy} --output my-paper --drop-prompt", "ledger") == {}
    assert read(f"{accuracy} --set options.recent=0.25", "ledger") == {"options": {"recent": 0.25}}
    assert read("reasonalloc paper --model x", "ledger") == {"keep_prompt": True}
    assert read("benchmarks/paper.py --problems 64", "ledger") == {"keep_prompt": True}
    assert read("reasonalloc paper --drop-prompt", "ledger") == {}
    with pytest.raises(ValueError, match="there is no 'alhpa'"):
        read(f"{accuracy} --set alhpa=1", "ledger")


def test_cells_of_a_study_are_its_methods(tmp_path):
    heads = json.loads((BOARD / "entries" / "heads" / "wave-heads-384.json").read_text())["method"]
    assert heads["name"] == "reasonalloc-wave"
    assert heads["settings"] == {"keep_prompt": True, "variant": "wave-heads"}
    assert heads["own"] == {"heads": "profile", "options": {"head_profile": "benchmarks/studies/heads.tsv"}}
    dropped = json.loads((BOARD / "entries" / "prompt" / "r-kv-384.json").read_text())["method"]
    assert dropped["name"] == "rkv" and dropped["settings"] == {}
    kept = json.loads((BOARD / "entries" / "prompt" / "r-kv-kept-384.json").read_text())["method"]
    assert kept["name"] == "rkv" and kept["settings"] == {"keep_prompt": True}
    other = tmp_path / "prompt.yaml"
    other.write_text("name: prompt")
    results = json.loads((RESULTS / "prompt" / "prompt.json").read_text())
    with pytest.raises(SystemExit, match="not the study that made the results"):
        build["entries"](results, "abcdef1", "A Reader", "here", study=other)


def test_results_of_others_become_entries(tmp_path, monkeypatch, validator):
    copy = tmp_path / "benchmarks" / "board"
    shutil.copytree(BOARD, copy)
    for name, _ in build["OURS"].values():
        path = tmp_path / "benchmarks" / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(RESULTS / f"{name}.json", path)
    study = tmp_path / "my-study"
    study.mkdir()
    results = json.loads((RESULTS / "paper" / "ledger.json").read_text())
    results["rows"] = results["rows"][:2]
    (study / "accuracy.json").write_text(json.dumps(results))
    command = ["build.py", str(study / "accuracy.json"), "--by", "A Reader", "--commit", "abcdef1"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):  # without the chains' address
        runpy.run_path(str(copy / "build.py"), run_name="__main__")
    monkeypatch.setattr(sys, "argv", [*command, "--data", "https://example.org/</script>"])
    runpy.run_path(str(copy / "build.py"), run_name="__main__")
    made = sorted((copy / "entries" / "a-reader-my-study").iterdir())
    assert [x.name for x in made] == ["full.json", "reasonalloc-384.json"]
    for path in made:
        validator.validate(json.loads(path.read_text()))
    html = (copy / "index.html").read_text()
    assert "A Reader" in html and html.count("</script>") == 2


def test_the_page_is_up_to_date():
    assert (BOARD / "index.html").read_text(encoding="utf-8") == build["page"]()


def asked(path: Path) -> str:
    """What an entry's methods were asked: only those of one question are compared."""
    entry = json.loads(path.read_text())
    settings = {k: v for k, v in entry["method"]["settings"].items() if k != "variant"}
    return json.dumps([entry["model"], entry["task"], settings], sort_keys=True)


def test_the_page_sorts_and_plots():
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = chromium.new_context(viewport={"width": 390, "height": 844}, offline=True).new_page()
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.goto(BOARD.joinpath("index.html").as_uri())
        doubting = [json.loads(x.read_text()) for x in ENTRIES if x.parent.name == "paper"]
        groups = tab.locator("#group option").all_inner_texts()
        assert len(groups) == len(set(map(asked, ENTRIES))) and all("seed" in x for x in groups)
        tab.locator("#group").select_option(label=next(x for x in groups if "64 problems x 1, seed 0" in x))
        assert tab.locator("#body tr").count() == tab.locator("circle").count() == len(doubting)
        assert tab.locator("#body tr td:first-child").first.inner_text() == "full"  # most are right
        tab.locator("th button", has_text="mean MB").click()
        shown = [float(x) for x in tab.locator("#body tr td:nth-child(4)").all_inner_texts()]
        assert shown == [float(f"{x / 1e6:.1f}") for x in sorted((y["bytes"]["mean"] for y in doubting), reverse=True)]
        tab.locator("th button", has_text="mean MB").click()
        assert tab.locator("#body tr td:nth-child(4)").first.inner_text() == f"{min(shown)}"
        places = [float(x) for x in tab.locator("circle").evaluate_all("x => x.map(y => y.getAttribute('cx'))")]
        assert len(set(places)) > 10
        tab.locator("#group").select_option(label=next(x for x in groups if "restated" in x))
        assert tab.locator("#body tr").count() == sum(x.parent.name == "restated" for x in ENTRIES)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390 and not errors
        chromium.close()
