"""Executes the notebooks, all or those named: `python notebooks/run.py [01_quickstart ...]`.

They run in the current folder and lie in notebooks-out/ afterwards, pictures included; the ones here stay as they are.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
OUT = Path("notebooks-out")


def execute(source: Path, target: Path) -> float:
    """Runs a notebook in the current folder; seconds. What it came to is written even where a cell fails."""
    notebook = nbformat.read(source, as_version=4)
    start = time.perf_counter()
    try:
        NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": "."}},
        ).execute()
    finally:
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
    return time.perf_counter() - start


def main(names: list[str]) -> None:
    for source in sorted(HERE.glob("[0-9]*.ipynb")):
        if not names or source.stem in names:
            print(f"{source.stem} ...", end="", flush=True)
            print(f" {execute(source, OUT / source.name):.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
