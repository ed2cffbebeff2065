"""The C library without Python: examples/engine.c is built, warnings being errors, and run on each instruction set; the
tests of the kernels are built for AArch64 and run on NEON, under qemu.

`make sanitize` runs the native programs under ASan and UBSan, `make neon` all of them under qemu.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from reasonalloc import _core

ROOT = Path(__file__).parents[1]
LIBRARY = ("core", "format", "stat", "scorer", "cpu", "cpu/simd")
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
    sources = [ROOT / "examples/engine.c", *(x for name in LIBRARY for x in ROOT.glob(f"csrc/{name}/*.c"))]
    includes = [f"-I{ROOT / 'csrc' / name}" for name in ("include", *LIBRARY)]
    subprocess.run(["cc", *FLAGS, *includes, *sources, "-lm", "-o", program], check=True)
    return program


@pytest.mark.parametrize("isa", _core.isas())
def test_engine_runs_without_python(engine, isa):
    run = subprocess.run([engine], env={"REASONALLOC_CPU": isa}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"instruction set {isa}" in run.stdout
    assert run.stdout.rstrip().endswith("ok")


def missing_for_neon():
    packages = {"aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
    missing = [package for program, package in packages.items() if not shutil.which(program)]
    if not missing:
        libc = ["aarch64-linux-gnu-gcc", "-print-file-name=libc.a"]  # a path, or the bare name if there is none
        if not Path(subprocess.run(libc, capture_output=True, text=True, check=True).stdout.strip()).is_absolute():
            missing = ["libc6-dev-arm64-cross"]
    return missing


@pytest.mark.slow
def test_neon_kernels_under_qemu(tmp_path):
    if missing := missing_for_neon():
        pytest.skip(f"not installed: {', '.join(missing)}")
    program = tmp_path / "test_kernels"
    sources = [ROOT / "tests/c/test_kernels.c", *ROOT.glob("csrc/cpu/simd/*.c")]
    includes = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "format", "cpu/simd")]
    subprocess.run(
        ["aarch64-linux-gnu-gcc", "-static", "-ffp-contract=off", *FLAGS, *includes, *sources, "-lm", "-o", program],
        check=True,
    )
    run = subprocess.run(["qemu-aarch64", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "neon " in run.stdout
