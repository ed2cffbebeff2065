"""Builds reasonalloc._core and, where there is nvcc, reasonalloc._cuda; the metadata is in pyproject.toml.

REASONALLOC_WERROR=1    warnings are errors
REASONALLOC_SANITIZE=1  AddressSanitizer and UndefinedBehaviorSanitizer (`make sanitize` shows how to run it)
REASONALLOC_CUDA=auto   0: no CUDA backend; 1: an error where there is no nvcc; auto: built where nvcc is found
REASONALLOC_CUDA_ARCHS  architectures to compile for, "75 80 90 100 120" if not given
REASONALLOC_EMULATE=1   also _cuda_emulated, the CUDA kernels on the CPU, for tests
"""

import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

LIBRARY = ("core", "format", "stat", "scorer", "cpu", "cpu/simd")
DIRECTORIES = tuple(f"csrc/{folder}" for folder in (*LIBRARY, "python", "torch"))
INCLUDES = ("csrc/include", *DIRECTORIES)
ARCHITECTURES = "75 80 90 100 120"
CUDA_HOME = os.environ.get("CUDA_HOME", "/usr/local/cuda")


def enabled(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def files(directories: tuple[str, ...], *suffixes: str) -> list[str]:
    return sorted(path for folder in directories for suffix in suffixes for path in glob(f"{folder}/*{suffix}"))


def nvcc() -> str | None:
    """Path of the compiler, None where no CUDA backend is to be built."""
    wish = os.environ.get("REASONALLOC_CUDA", "auto") or "auto"
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"REASONALLOC_CUDA must be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{CUDA_HOME}/bin")
    if wish == "1" and found is None:
        raise SystemExit(
            "REASONALLOC_CUDA=1 asks for the CUDA backend, but there is no nvcc on PATH or in"
            f" {CUDA_HOME}/bin: install the CUDA toolkit, 12.8 or newer, or set CUDA_HOME"
        )
    return found


NVCC = nvcc()

# A free-threaded CPython has no limited API before 3.15.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
macros = [("Py_LIMITED_API", "0x030b0000")] if limited else []

compile_args = [
    "-std=c11",
    "-O3",
    "-g0",  # Python was often built with -g, which would make the extension eight times as large
    "-ffp-contract=off",  # clang's default would fuse in C and make results depend on the compiler
    "-fvisibility=hidden",
    "-fexceptions",  # a torch operator reports its error by a C++ exception that passes through our C frame
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wconversion",
    "-Wcast-qual",
    "-Wstrict-prototypes",
    f"-isystem{sysconfig.get_path('include')}",  # Python's own headers are not ours to fix
]
link_args = ["-ldl", "-lm"]
sanitizers: list[str] = []
if enabled("REASONALLOC_WERROR"):
    compile_args.append("-Werror")
if enabled("REASONALLOC_SANITIZE"):
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compile_args += [*sanitizers, "-O1", "-g", "-fno-omit-frame-pointer", "-UNDEBUG"]
    link_args += sanitizers


def extension(name: str, sources: list[str], **more: list) -> Extension:
    return Extension(
        f"reasonalloc.{name}",
        sources=sources,
        depends=["setup.py", *files((*INCLUDES, "csrc/cuda"), ".h", ".inc", ".cuh", ".cu")],
        include_dirs=[*INCLUDES, *more.get("include_dirs", [])],
        define_macros=[*macros, *more.get("define_macros", [])],
        extra_compile_args=compile_args,
        extra_link_args=[*link_args, *more.get("link_args", [])],
        py_limited_api=limited,
    )


class BuildExt(build_ext):
    """Compiles the kernels of csrc/cuda first: with nvcc, or with a C++ compiler for the emulation."""

    def build_extension(self, ext: Extension) -> None:
        if "csrc/cuda/backend.c" in ext.sources:
            folder = Path(self.build_temp) / ext.name
            folder.mkdir(parents=True, exist_ok=True)
            kernels = files(("csrc/cuda",), ".cu")
            objects = [str(folder / f"{Path(path).stem}.o") for path in kernels]
            newest = max(os.path.getmtime(path) for path in ["setup.py", *ext.depends])
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for _ in pool.map(self._compile, [ext.name] * len(kernels), kernels, objects, [newest] * len(kernels)):
                    pass
            ext.extra_objects = [*ext.extra_objects, *objects]
        super().build_extension(ext)

    def _compile(self, name: str, source: str, target: str, newest: float) -> None:
        if not self.force and os.path.exists(target) and os.path.getmtime(target) > newest:
            return
        if name.endswith("_emulated"):
            command = ["c++", "-std=c++17", "-g0", "-fPIC", "-DRA_EMULATE", "-ffp-contract=off"]
            # One head size's own kernels are enough for the sanitizers: compiling is what takes long with them.
            command += [*sanitizers, "-O1", "-DRA_HEAD_SIZES(X)=X(64)"] if sanitizers else ["-O2"]
            command += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-x", "c++"]
        else:
            archs = (os.environ.get("REASONALLOC_CUDA_ARCHS") or ARCHITECTURES).split()
            command = [str(NVCC), "-std=c++17", "-O3", "-fmad=false" if is_exact(source) else "-fmad=true"]
            command += [f"-gencode=arch=compute_{each},code=sm_{each}" for each in archs]
            command += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
            command += ["-Xcompiler=-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics"]
        subprocess.run([*command, "-Icsrc/include", "-Icsrc/cuda", "-c", source, "-o", target], check=True)


def is_exact(kernel: str) -> bool:
    """Whether integers depend on its arithmetic: then nothing may be fused."""
    return Path(kernel).stem in ("allocate", "choose")


extensions = [extension("_core", files(DIRECTORIES, ".c"))]
host = [*files(("csrc/cuda",), ".c"), "csrc/core/util.c"]
if NVCC is not None:
    cuda = Path(os.path.realpath(NVCC)).parent.parent
    if not (cuda / "include/cuda_runtime_api.h").exists():
        cuda = Path(CUDA_HOME)
    libraries = [f"-L{cuda}/lib64", "-lcudart_static", "-lrt", "-lpthread"]
    extensions.append(extension("_cuda", host, include_dirs=[str(cuda / "include")], link_args=libraries))
if enabled("REASONALLOC_EMULATE"):
    emulate = [("RA_EMULATE", "1")]
    extensions.append(extension("_cuda_emulated", host, define_macros=emulate, link_args=["-lstdc++"]))

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
