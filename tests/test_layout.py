"""Imports go down only: floors of folders, and no circle of modules."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import reasonalloc

ROOT = Path(reasonalloc.__file__).parent

# From low to high. A module imports modules of its own floor and of lower ones. Files of the root are named one by one.
FLOORS = (
    ("fields", "files", "fingerprint", "hub", "lazy", "meant", "pictures", "protocols"),
    ("_core", "allocate", "provenance", "score"),
    ("store", "ops"),
    ("policy",),
    ("methods",),
    ("config",),
    ("trace",),
    ("hf",),
    ("", "lab"),  # "": reasonalloc itself, which shows the names of everything below
    ("integrations",),
    ("cli", "__main__"),
)
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}

# importer -> imported, with the reason in a comment; to stay empty.
ALLOWED: set[tuple[str, str]] = set()


def modules() -> dict[str, Path]:
    """Dotted names inside of the package, "" for the package itself."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, every: dict[str, Path]) -> set[str]:
    """Modules of the package that one imports, anywhere in its file: late and TYPE_CHECKING ones too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
                above = ["reasonalloc", *here][: len(here) + 2 - node.level]
                base = ".".join([*filter(None, above), *filter(None, [base])])
            inner = base.removeprefix("reasonalloc").removeprefix(".")
            for alias in node.names:  # `from package import module` means the module, not the package around it
                full = f"{inner}.{alias.name}".lstrip(".")
                found.add(f"{base}.{alias.name}" if full in every or full == "_core" else base)
    mine = {x for x in found if x == "reasonalloc" or x.startswith("reasonalloc.")}
    return {x.removeprefix("reasonalloc").removeprefix(".") for x in mine} - {name}


def graph() -> dict[str, set[str]]:
    every = modules()
    return {name: imports(name, path, every) for name, path in every.items()}


def height(name: str) -> int:
    first = name.split(".")[0]
    assert first in HEIGHT, f"{name} stands on no floor: enter it in FLOORS"
    return HEIGHT[first]


def test_imports_go_down():
    upward = [
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in others
        if height(other) > height(name) and (name, other) not in ALLOWED
    ]
    assert not upward, upward


def test_no_circles():
    # A package's __init__ that gathers its own modules is no circle with them unless they import the package by name.
    order = {name: {x for x in others if (name, x) not in ALLOWED} for name, others in graph().items()}
    try:
        TopologicalSorter(order).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_what_is_allowed_is_there():
    """An exception that is no longer needed goes."""
    edges = {(name, other) for name, others in graph().items() for other in others}
    assert edges >= ALLOWED, ALLOWED - edges


def test_the_test_finds_them(tmp_path):
    """Late, conditional and package-wide imports count."""
    source = tmp_path / "low.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from reasonalloc.hf.cache import ReasonAllocCache\n"
        "def late():\n    import reasonalloc.cli\n    from reasonalloc import score\n    import reasonalloc as ra\n"
    )
    assert imports("store.low", source, modules()) == {"hf.cache", "cli", "score", ""}
    source.write_text("from . import pages\nfrom ..hf import cache\nfrom ..score import rkv\n")
    assert imports("store.low", source, modules()) == {"store.pages", "hf.cache", "score"}
