"""Builds reasonalloc._core; the metadata is in pyproject.toml.

REASONALLOC_WERROR=1    warnings are errors
REASONALLOC_SANITIZE=1  AddressSanitizer and UndefinedBehaviorSanitizer (`make sanitize` shows how to run it)
"""

import os
import sysconfig
from glob import glob

from setuptools import Extension, setup

LIBRARY = ("core", "format", "stat", "scorer", "cpu", "cpu/simd")
DIRECTORIES = tuple(f"csrc/{folder}" for folder in (*LIBRARY, "python", "torch"))
INCLUDES = ("csrc/include", *DIRECTORIES)


def enabled(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def files(directories: tuple[str, ...], *suffixes: str) -> list[str]:
    return sorted(path for folder in directories for suffix in suffixes for path in glob(f"{folder}/*{suffix}"))


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
if enabled("REASONALLOC_WERROR"):
    compile_args.append("-Werror")
if enabled("REASONALLOC_SANITIZE"):
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compile_args += [*sanitizers, "-O1", "-g", "-fno-omit-frame-pointer", "-UNDEBUG"]
    link_args += sanitizers

setup(
    ext_modules=[
        Extension(
            "reasonalloc._core",
            sources=files(DIRECTORIES, ".c"),
            depends=["setup.py", *files(INCLUDES, ".h", ".inc")],
            include_dirs=list(INCLUDES),
            define_macros=macros,
            extra_compile_args=compile_args,
            extra_link_args=link_args,
            py_limited_api=limited,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
