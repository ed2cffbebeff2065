"""The part `memory`: what the process really holds while it decodes, against what `stats()` says."""

from __future__ import annotations

import statistics
import time
from typing import Literal, get_args

import torch

from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.bench.decoding import Decoder, Subject, config_of
from reasonalloc.lab.bench.machine import surroundings
from reasonalloc.lab.bench.progress import Log, Save, discard
from reasonalloc.lab.bench.resident import (
    give_back,
    in_fresh_process,
    peak_resident,
    reset_peak,
    resident,
    tensor_bytes,
)
from reasonalloc.lab.bench.results import Memory, MemoryRow
from reasonalloc.lab.bench.settings import INTERVAL, Settings
from reasonalloc.lab.bench.states import text_ids
from reasonalloc.lab.models import EMBEDDED_LABEL, load

SCHEMA = 1
ROWS, PROMPT = 8, 64
METHODS = ("dynamic", "static", "reasonalloc-128", "reasonalloc-256")
_EVERY = 16  # steps between two samples of resident memory
_TENSORS_EVERY = 512  # torch has no count of its own for the CPU: all objects are asked, which takes a moment

_Figure = Literal["bytes", "peak_bytes", "mean_bytes", "reserved_bytes", "ratio", "evicted", "routings", "steps"]
_KEPT: tuple[_Figure, ...] = get_args(_Figure)  # of `stats()`


def decode(
    name: str, rows: int, prompt: int, tokens: int, model_name: str | None = None, ids: list[list[int]] | None = None
) -> MemoryRow:
    """Really decodes a chain of `tokens` a row, prompt included, greedily. Run it in a process of its own."""
    model, tokenizer, label = load(model_name)
    prompts = text_ids(tokenizer, rows * prompt).view(rows, prompt) if ids is None else torch.tensor(ids)
    subject = Subject(model, model, [], label)
    _chain(subject, name, prompts, prompts.shape[1] + INTERVAL + 2, [])  # loads code, starts threads, makes workspaces
    give_back()
    baseline, baseline_tensors = resident(), tensor_bytes()
    reset_peak()
    samples: list[dict[str, int]] = []
    decoder, seconds = _chain(subject, name, prompts, tokens, samples)
    peak = peak_resident()
    sizes = [x["resident"] for x in samples]
    result: MemoryRow = {
        "cache": name,
        "rows": rows,
        "prompt": prompts.shape[1],
        "tokens": tokens,
        "baseline": baseline,
        "baseline_tensors": baseline_tensors,
        "peak": peak,
        "mean": statistics.fmean(sizes),
        "rise_peak": peak - baseline,
        "rise_mean": statistics.fmean(sizes) - baseline,
        "seconds": seconds,
        "samples": samples,
        "cache_bytes": decoder.bytes(),
    }
    if isinstance(decoder.cache, ReasonAllocCache):
        stats = decoder.cache.stats()
        result["stats"] = {key: stats[key] for key in _KEPT}
        config = config_of(name)
        if config is not None and config.budget is not None:
            token_bytes = 2 * model.dtype.itemsize * sum(x.heads * x.head_dim for x in decoder.cache.ragged)
            bound = rows * (config.budget + INTERVAL) * token_bytes
            result["bound_bytes"] = bound
            result["held_of_bound"] = stats["peak_bytes"] / bound
            result["reserved_of_bound"] = max(x["reserved"] for x in samples) / bound
    return result


def _chain(
    subject: Subject, name: str, prompts: torch.Tensor, tokens: int, samples: list[dict[str, int]]
) -> tuple[Decoder, float]:
    """(decoder, seconds of all steps) after a chain; figures of every 16th step go to `samples`."""
    decoder = Decoder(subject, name, prompts.shape[0], room=tokens)
    start = time.perf_counter()
    with torch.no_grad():
        out = decoder.model(input_ids=prompts, **cache_argument(decoder.cache), use_cache=True, logits_to_keep=1)
    decoder.tokens, decoder.length = out.logits[:, -1:].argmax(-1), prompts.shape[1]
    del out
    while decoder.length < tokens:
        decoder.step()
        if decoder.length % _EVERY == 0 or decoder.length == tokens:
            sample = {"length": decoder.length, "resident": resident()}
            if isinstance(decoder.cache, ReasonAllocCache):
                pool = decoder.cache.pool
                sample |= {"held": pool.bytes, "reserved": pool.reserved_bytes}
            if decoder.length % _TENSORS_EVERY == 0 or decoder.length == tokens:
                sample["tensors"] = tensor_bytes()
            samples.append(sample)
    return decoder, time.perf_counter() - start


def run(settings: Settings, log: Log, save: Save = discard) -> Memory:
    """Every method in a process of its own, JSON-ready."""
    quick = settings.quick
    tokens = settings.memory_tokens or (512 if quick else 4096)
    names = settings.memory_methods or (("static", "reasonalloc-128") if quick else METHODS)
    rows = 2 if quick else ROWS
    result: Memory = {
        "schema": SCHEMA,
        "part": "memory",
        "settings": settings.as_json(),
        "provenance": surroundings(EMBEDDED_LABEL),
        "torch_counts": "torch has no allocator statistics for the CPU; the storages of all live tensors are summed up",
        "results": [],
    }
    for name in names:
        log(f"{name}: {rows} rows, {tokens} tokens, every step real")
        row = in_fresh_process(decode, name=name, rows=rows, prompt=PROMPT, tokens=tokens)
        log(
            f"{name}: {row['seconds']:.0f} s, resident {row['baseline'] / 1e6:.0f} MB before,"
            f" {row['peak'] / 1e6:.0f} MB at most, cache {row['cache_bytes'] / 1e6:.0f} MB"
        )
        result["results"].append(row)
        save(result)
    return result
