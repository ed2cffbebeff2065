"""The C library without Python: examples/engine.c is built, warnings being errors, and run on each instruction set.

`make sanitize` runs the same program under ASan and UBSan.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from reasonalloc import _core

ROOT = Path(__file__).parents[1]
FLAGS = [
    "-std=c11",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Wcast-qual",
    "-Wstrict-prototypes",
    "-Werror",
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("engine") / "engine"
    sources = [ROOT / "examples/engine.c", *ROOT.glob("csrc/core/*.c"), *ROOT.glob("csrc/simd/*.c")]
    includes = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "core", "simd")]
    subprocess.run(["cc", *FLAGS, *includes, *sources, "-lm", "-o", program], check=True)
    return program


@pytest.mark.parametrize("isa", _core.isas())
def test_engine_runs_without_python(engine, isa):
    run = subprocess.run([engine], env={"REASONALLOC_CPU": isa}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"instruction set {isa}" in run.stdout
    assert run.stdout.rstrip().endswith("ok")
