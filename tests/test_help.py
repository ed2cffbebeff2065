"""Help comes at once: nothing heavy is imported for it, nor by `import reasonalloc` alone."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

import reasonalloc as ra
from reasonalloc.cli import parser

HEAVY = ["torch", "transformers", "matplotlib", "scipy", "ray", "peft", "huggingface_hub"]


def commands(found: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> list[list[str]]:
    """The command itself and all below it."""
    below = [x for x in found._actions if isinstance(x, argparse._SubParsersAction)]
    inner = [y for x in below for name, each in x.choices.items() for y in commands(each, (*path, name))]
    return [list(path), *inner]


def run(code: str) -> list[str]:
    """Heavy modules that a fresh process has loaded after this code."""
    end = f"\nimport json, sys\nprint(json.dumps([x for x in {HEAVY!r} if x in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_help_of_every_command_needs_nothing_heavy():
    every = commands(parser())
    assert ["evaluate", "accuracy"] in every and len(every) > 10
    code = "from reasonalloc.cli import main\n" + "\n".join(
        f"try: main({[*command, '--help']!r})\nexcept SystemExit as stop: assert stop.code == 0" for command in every
    )
    assert run(code) == []


def test_bad_options_need_nothing_heavy():
    assert run("from reasonalloc.cli import main\nassert main(['generate', '--budgets', '3']) == 2") == []


def test_importing_the_package_needs_nothing_heavy():
    assert run("import reasonalloc as ra\nra.Config('rkv', budget=64); ra.methods()") == []
    assert "torch" in run("import reasonalloc as ra\nra.ReasonAllocCache")


def test_every_public_name_is_there():
    for name in ra.__all__:
        assert getattr(ra, name) is not None
    assert set(ra.__all__) <= set(dir(ra))
    with pytest.raises(AttributeError, match="nosuch"):
        ra.nosuch  # noqa: B018


def test_methods_stays_a_function():
    """It is the name of a subpackage too."""
    assert run("import reasonalloc as ra\nimport reasonalloc.methods.rkv\nassert 'rkv' in ra.methods()") == []
