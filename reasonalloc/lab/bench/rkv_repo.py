"""The code of a clone of Zefan-Cai/R-KV, timed as it is."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch

_CLASS, _UTILITIES = "compression/r1_kv.py", "utils.py"
_PACKAGE = "_reasonalloc_rkv_clone"


class R1KV(Protocol):
    """The clone's class, of which this is used."""

    def update_kv(
        self, keys: torch.Tensor, queries: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--rkv-repo: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(clone: str | Path) -> Callable[..., R1KV]:
    """The class R1KV of the clone.

    Its package does not import (`compression/__init__.py` names files that are not there), so the class's file is
    loaded beside a package that holds the two functions it takes from `utils.py`, and nothing else.
    """
    root = Path(clone).expanduser()
    folders = [x for x in (root / "rkv", root / "HuggingFace" / "rkv", root) if (x / _CLASS).is_file()]
    if not folders or not (folders[0] / _UTILITIES).is_file():
        raise ValueError(f"--rkv-repo {clone}: a clone of Zefan-Cai/R-KV has rkv/{_CLASS} and rkv/{_UTILITIES}")
    utilities = _load(f"{_PACKAGE}_utils", folders[0] / _UTILITIES)
    package = ModuleType(_PACKAGE)
    package.__path__ = []
    for name in ("cal_similarity", "compute_attention_scores"):
        if not hasattr(utilities, name):
            raise ValueError(f"--rkv-repo {clone}: {_UTILITIES} has no {name}; is it Zefan-Cai/R-KV?")
        setattr(package, name, getattr(utilities, name))
    sys.modules[_PACKAGE] = package
    try:
        found: Callable[..., R1KV] = _load(f"{_PACKAGE}.r1_kv", folders[0] / _CLASS).R1KV
        return found
    finally:
        del sys.modules[_PACKAGE]
