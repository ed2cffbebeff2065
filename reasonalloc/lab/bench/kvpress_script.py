"""Decoding with kvpress, run by the interpreter of an environment that has it. Imports nothing of this package.

Standard input: {"model": folder, "gguf_file": name or null, "ids": [[...]], "steps": n, "target": n, "interval": n,
"press": "knorm", "snapkv", "adakv" or null}. Standard output: the figures as JSON, in the last line.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch


class _Measured(TypedDict):
    rows: int
    context: int
    steps: int
    step_seconds: list[float]
    tokens_per_s: float
    cache_bytes: int
    resident_loaded: int
    resident_peak_prefill: int
    resident_peak_decode: int


class Decoded(_Measured, total=False):
    """Figures of `measure`. kept_tokens: of a row at the end. versions: of kvpress's environment."""

    kept_tokens: float
    versions: dict[str, str]


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field + ":"))


def measure(model: Any, cache: Any, ids: torch.Tensor, steps: int, bytes_of: Callable[[], int]) -> Decoded:
    """Reads `ids`, then decodes `steps` tokens a row greedily; speed of the steps, bytes of cache and process."""
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what loading left in the C heap
    loaded = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    with torch.no_grad():
        position = ids.shape[1]
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        prefill_peak = status("VmHWM")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        seconds = []
        for step in range(steps):
            tokens = logits[:, -1:].argmax(-1)
            start = time.perf_counter()
            where = torch.full((1, 1), position + step)  # what is cut away must not move positions
            logits = model(
                input_ids=tokens, past_key_values=cache, use_cache=True, position_ids=where, logits_to_keep=1
            ).logits
            seconds.append(time.perf_counter() - start)
    return {
        "rows": ids.shape[0],
        "context": position,
        "steps": steps,
        "step_seconds": seconds,
        "tokens_per_s": ids.shape[0] * steps / sum(seconds),
        "cache_bytes": bytes_of(),
        "resident_loaded": loaded,
        "resident_peak_prefill": prefill_peak,
        "resident_peak_decode": status("VmHWM"),
    }


def stock_bytes(cache: Any) -> int:
    return sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))


def main() -> None:
    import kvpress  # type: ignore[import-not-found]
    import transformers
    from transformers import AutoModelForCausalLM, DynamicCache

    order = json.load(sys.stdin)
    extra: dict[str, str] = {}
    if order["gguf_file"]:
        extra["gguf_file"] = order["gguf_file"]
    model = AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.float32, **extra).eval()
    if hasattr(model, "dequantize") and getattr(model, "is_quantized", False):
        model = model.dequantize()
    ids = torch.tensor(order["ids"])
    cache = DynamicCache()
    press: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if order["press"] is not None:
        scorers = {"knorm": kvpress.KnormPress, "snapkv": kvpress.SnapKVPress, "adakv": kvpress.KnormPress}
        scorer = scorers[order["press"]]()
        prefill = scorers[order["press"]](compression_ratio=max(0.0, 1 - order["target"] / ids.shape[1]))
        if order["press"] == "adakv":
            scorer, prefill = kvpress.AdaKVPress(scorer), kvpress.AdaKVPress(prefill)
        decoding = kvpress.DecodingPress(
            base_press=scorer, compression_interval=order["interval"], target_size=order["target"]
        )
        press = kvpress.PrefillDecodingPress(prefilling_press=prefill, decoding_press=decoding)(model)
    with press:
        found = measure(model, cache, ids, order["steps"], lambda: stock_bytes(cache))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    with contextlib.suppress(ImportError):
        from importlib.metadata import version

        versions["kvpress"] = version("kvpress")
    print(json.dumps({**found, "versions": versions, "kept_tokens": cache.layers[0].keys.shape[2]}))


if __name__ == "__main__":
    main()
