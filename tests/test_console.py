"""Texts of users, files and models come out as they are and do nothing to the terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accuracy import folder, task  # noqa: F401  (fixtures)
from rich.console import Console
from traces import recorded

import reasonalloc as ra
from reasonalloc.cli import main, options, study
from reasonalloc.cli.console import PlainConsole, bar
from reasonalloc.cli.profile import show
from reasonalloc.cli.stream import LiveWatch
from reasonalloc.hf.decode import Sampling
from reasonalloc.lab.evaluate.cells import Cell
from reasonalloc.lab.evaluate.statistics import Measure
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.evaluate.summary import Row, Summary
from reasonalloc.lab.evaluate.workers import Source
from reasonalloc.lab.table import Section
from reasonalloc.lab.tasks import items

HOSTILE = "a[/b]\x1b]0;owned\x07[red]x:smile:|y"
SHOWN = "a[/b]\\x1b]0;owned\\x07[red]x:smile:|y"


def printed(value, terminal=False):
    out = PlainConsole(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    out.print(value)
    return out.file.getvalue()


def test_plain_text():
    assert printed(HOSTILE) == SHOWN + "\n"


@pytest.mark.parametrize("console", [PlainConsole, Console])
def test_tables_of_a_user_s_own_names(console):
    """In a notebook the console is the user's own, which knows markup."""
    out = console(file=io.StringIO(), width=200)
    out.print(Section(HOSTILE, [HOSTILE, "n"], [[HOSTILE, "1"]], HOSTILE).rich())
    assert out.file.getvalue().count(SHOWN) == 4 and "\x1b" not in out.file.getvalue()


def test_markdown_cells_end_where_the_cell_ends():
    lines = Section("t", ["a|b", "n"], [["x\ny|z", "1"]]).markdown_rows().splitlines()
    assert lines == ["| a\\|b | n |", "| --- | ---: |", "| x y\\|z | 1 |"]


def test_what_varies_is_never_cut_off():
    """At 120 columns the value of "gamma=0.25" was shown as "gamma=0...."."""
    row = Row("reasonalloc 256 gamma=0.25", "reasonalloc", 256, None, 8, 1, Measure(0.5, 0.25, 0.75), 1000.0, 0.0, 1e6,
              10**6, 100.0, [], {}, {})  # fmt: skip
    out = Console(file=io.StringIO(), width=70)
    out.print(Summary([row]).table())
    assert "…" not in out.file.getvalue()
    rows = [x.split("│")[1:3] for x in out.file.getvalue().splitlines() if x.startswith("│")]
    assert ["".join(x.strip() for x in column) for column in zip(*rows, strict=True)] == [
        "reasonalloc",
        "256gamma=0.25",
    ]


def test_progress_and_live_views():
    out = PlainConsole(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with bar(out) as progress:
        progress.add_task(HOSTILE, total=2)
        progress.refresh()
    assert SHOWN in out.file.getvalue()

    class Tokenizer:
        def decode(self, ids, **_):
            return HOSTILE

    out = PlainConsole(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with LiveWatch(out, Tokenizer(), HOSTILE, 3) as watch:
        watch._shown = -1.0
        for ids in ([1, 2], [3], [4]):
            watch.put(torch.tensor(ids))
    assert SHOWN in out.file.getvalue() and "owned\x07" not in out.file.getvalue()


def test_a_study_says_what_takes_its_time(folder, task, tmp_path):  # noqa: F811
    """Loading, then the wave, then chains: no bar that stands at 0 of nobody knows how many."""
    pytest.importorskip("scipy")
    cells = [Cell("reasonalloc 24", ra.Config("reasonalloc", budget=24, interval=8))]
    own = Study(tmp_path, Source(folder), task, items(task, count=2), Sampling(max_new_tokens=8))
    told: list = []
    own.say = told.append
    own.run(own.with_wave(cells), lambda *progress: told.append(progress))
    assert told == ["loading the model", "measuring the layer wave", (0, 2), task, (1, 2), (2, 2)]
    out = PlainConsole(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with bar(out) as progress:
        progress.add_task("loading the model", total=None)
        progress.refresh()
    assert "loading the model" in out.file.getvalue() and "/?" not in out.file.getvalue()
    with study.status_line(out, own):
        own.say("measuring the layer wave")
    assert "measuring the layer wave" in out.file.getvalue()


def test_a_gpu_that_is_left_unused_is_told_of(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    pytest.importorskip("math_verify")
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "accuracy", "--model", folder, "--task", task, "--methods", "full", "--max-new-tokens", "4"]
    for there in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert main(command) == 0
        assert ("--device-map cuda uses it" in capsys.readouterr().out) == there
    assert main([*command, "--device-map", "cpu"]) == 0 and "uses it" not in capsys.readouterr().out


def test_a_profile_s_label():
    out = PlainConsole(file=io.StringIO(), width=200)
    show(ra.WaveProfile((1.0, 2.0), (0, 1), {}), out, HOSTILE)
    assert SHOWN in out.file.getvalue()


def test_report_of_a_trace_with_a_hostile_model_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p[").mkdir()
    trace, _ = recorded(tokens=60)
    replace(trace, source={**trace.source, "model": HOSTILE}).save("x[b].trace")
    assert main(["report", "x[b].trace", "-o", "p[/b].html"]) == 0
    out = capsys.readouterr().out
    assert SHOWN in out and "saved to p[/b].html" in out and "\x1b" not in out
    assert main(["report", f"none{HOSTILE}"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\x07" not in err and "\\x1b" in err


def test_a_page_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trace, _ = recorded(tokens=60)
    name = "x\udcff.trace"  # what Python makes of a file name that is no UTF-8
    trace.save(name)
    Path("r.html").write_text("old")
    assert main(["report", name, "-o", "r.html"]) == 2
    assert "half of a surrogate pair" in capsys.readouterr().err and Path("r.html").read_text() == "old"
    trace.source["model"] = "\ud800"
    trace.save("y.trace")
    assert main(["report", "y.trace", "-o", "r.html"]) == 2
    assert "half of a surrogate pair" in capsys.readouterr().err and Path("r.html").read_text() == "old"


def test_a_wide_console_is_one_that_knows_no_markup():
    assert isinstance(options.wide_console(), PlainConsole)
