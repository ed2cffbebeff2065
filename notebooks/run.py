"""Executes the notebooks, all or those named: `python notebooks/run.py [--keep] [01_quickstart ...]`.

They run in the current folder and lie in notebooks-out/ afterwards, pictures included; those here stay as they are, but
with --keep, which puts the outputs into them with small pictures.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

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


def keep(source: Path, target: Path) -> None:
    """The outputs of an executed notebook, its pictures in 64 colours, in the place of it."""
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                picture = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
                small = io.BytesIO()
                picture.convert("RGB").quantize(64).save(small, "PNG", optimize=True)
                output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode()
    nbformat.write(notebook, target)


def main(names: list[str]) -> None:
    kept, names = "--keep" in names, [x for x in names if x != "--keep"]
    for source in sorted(HERE.glob("[0-9]*.ipynb")):
        if not names or source.stem in names:
            print(f"{source.stem} ...", end="", flush=True)
            print(f" {execute(source, OUT / source.name):.0f} s", flush=True)
            if kept:
                keep(OUT / source.name, source)


if __name__ == "__main__":
    main(sys.argv[1:])
