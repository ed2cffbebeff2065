"""Whole decode steps and prompts of a model on a GPU: ours, also as CUDA graphs, beside transformers' caches."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_timing import Clock
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, StaticCache

import reasonalloc as ra
from reasonalloc.hf.attention import using
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.graph import DecodeGraph

Step = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Lengths:
    """A decode step of rows: ours with a cut to `budget` every `interval` steps, peers at `length`; None: no peers."""

    rows: int
    budget: int
    length: int | None
    interval: int


def llama(device: str, tiny: bool) -> Any:
    """The shape of Llama 3.1 8B but for a vocabulary of 49,152 (7.4 billion weights); random, bfloat16."""
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131_072, eos_token_id=None,
    )  # fmt: skip
    if tiny:
        config = LlamaConfig(
            vocab_size=64, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, eos_token_id=None,
        )  # fmt: skip
    return random_model(config, device, torch.float32 if tiny else torch.bfloat16)


def smollm2(device: str) -> Any:
    """The shape of SmolLM2-135M; random, bfloat16."""
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    return random_model(config, device, torch.bfloat16)


def random_model(config: LlamaConfig, device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def configuration(budget: int, interval: int) -> ra.Config:
    return ra.Config(method="reasonalloc", budget=budget, interval=interval, device="model")


def forward(model: Any, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, V] of the token that follows."""
    logits: torch.Tensor = model(ids, **cache_argument(cache), use_cache=True, logits_to_keep=1).logits
    return logits[:, -1]


def prompt(model: Any, rows: int, tokens: int) -> torch.Tensor:
    generator = torch.Generator(model.device).manual_seed(1)
    return torch.randint(3, model.config.vocab_size, (rows, tokens), generator=generator, device=model.device)


def check(model: Any) -> None:
    """With nothing evicted, ours gives transformers' logits; RuntimeError if not."""
    ids, logits = prompt(model, 2, 24), []
    for cache in (DynamicCache(config=model.config), ra.ReasonAllocCache(model, configuration(64, 128))):
        with using(model):
            logits.append(torch.stack([forward(model, cache, x) for x in (ids[:, :20], *ids[:, 20:].split(1, 1))]))
    worst = float((logits[0] - logits[1]).abs().max() / logits[0].abs().max())
    if not worst < (1e-4 if model.dtype == torch.float32 else 0.1):
        raise RuntimeError(f"logits differ by {worst:.1e} of the largest")


def filled(model: Any, cache: Any, rows: int, length: int) -> None:
    """Random keys and values: what they are does not matter to the peers' time."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    kind = {"dtype": model.dtype, "device": model.device}
    for layer in range(config.num_hidden_layers):
        keys = torch.randn(rows, config.num_key_value_heads, length, size, **kind)
        cache.update(keys, keys, layer, {"cache_position": torch.arange(length, device=model.device)})


def times(clock: Clock, step: Step, rows: int, steps: int, warm_up: int) -> list[float]:
    """Seconds of each step."""
    ids = torch.full((rows, 1), 5, device=clock.device)
    for _ in range(warm_up):
        step(ids)
    clock.wait()
    return [clock.seconds(lambda: step(ids)) for _ in range(steps)]


def decoding(model: Any, case: Lengths, clock: Clock) -> Iterator[dict[str, Any]]:
    """Seconds of decode steps over a whole interval, its cut included, and of the peers."""
    check(model)
    rows, interval = case.rows, case.interval
    cuda = clock.has_graphs
    ways = ["ours", "ours, graph"] if cuda else ["ours"]
    for way in ways:
        cache = ra.ReasonAllocCache(model, configuration(case.budget, interval))
        with using(model):
            forward(model, cache, prompt(model, rows, case.budget + interval))
            step: Step = DecodeGraph(model, cache).step if way != "ours" else partial(forward, model, cache)
            samples = times(clock, step, rows, interval, 2 * interval + 2)
            if cuda:
                not_waiting(step, rows, clock)
        yield row_of(way, case, samples, cache.pool.bytes)
        del step, cache
        release()
    if case.length is None:
        return
    for name in ("DynamicCache", "StaticCache"):
        with torch.inference_mode():
            cache = DynamicCache(config=model.config) if name == "DynamicCache" else StaticCache(
                config=model.config, max_cache_len=case.length + 64
            )  # fmt: skip
            filled(model, cache, rows, case.length)
            samples = times(clock, partial(forward, model, cache), rows, min(16, interval), 4)
        size = 2 * rows * case.length * model.config.num_hidden_layers * model.config.num_key_value_heads
        head = model.config.hidden_size // model.config.num_attention_heads
        yield row_of(name, case, samples, size * head * model.dtype.itemsize)
        del cache
        release()


def steps(model: Any, rows: int, budget: int, interval: int, clock: Clock) -> Iterator[dict[str, Any]]:
    """Seconds of decode steps with R-KV's scores, with statistics of attention (h2o) and with nothing evicted, over an
    interval with its cut; as CUDA graphs on a GPU. Each begins with `budget` tokens."""
    for method in ("rkv", "h2o", "full"):
        limits = {} if method == "full" else {"budget": budget, "interval": interval}
        cache = ra.ReasonAllocCache(model, ra.Config(method=method, device="model", **limits))
        with using(model):
            forward(model, cache, prompt(model, rows, budget))
            step: Step = DecodeGraph(model, cache).step if clock.has_graphs else partial(forward, model, cache)
            warm_up = 4 if method == "full" else 2 * interval + 2
            samples = times(clock, step, rows, interval, warm_up)
        row = row_of(f"ours, {method}", Lengths(rows, budget, None, interval), samples, cache.pool.bytes)
        yield row if limits else row | {"budget": ""}
        del step, cache
        release()


def not_waiting(step: Step, rows: int, clock: Clock) -> None:
    """torch raises where the host waits for the GPU in a step."""
    ids = torch.full((rows, 1), 5, device=clock.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step(ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def row_of(name: str, case: Lengths, samples: list[float], size: int) -> dict[str, Any]:
    mean = statistics.fmean(samples)
    return {
        "cache": name, "rows": case.rows, "budget": case.budget if name.startswith("ours") else "",
        "length": "" if name.startswith("ours") else case.length, "step_ms": mean * 1e3,
        "median_ms": statistics.median(samples) * 1e3, "longest_ms": max(samples) * 1e3,
        "tokens_per_s": case.rows / mean, "cache_gb": size / 1e9, "samples": samples,
    }  # fmt: skip


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prompts(model: Any, rows: int, tokens: int, budget: int, clock: Clock) -> Iterator[dict[str, Any]]:
    """Seconds from a prompt to its first token, ours with the prompt's cut, and the most memory that torch had."""
    for name in ("DynamicCache", "ours"):
        samples, peak = [], 0
        for _ in range(3):
            release()
            cache: Any = DynamicCache(config=model.config)
            if name == "ours":
                cache = ra.ReasonAllocCache(model, configuration(budget, 128))
            before = torch.cuda.memory_allocated() if clock.has_graphs else 0
            if clock.has_graphs:
                torch.cuda.reset_peak_memory_stats()
            ids = prompt(model, rows, tokens)
            with using(model):
                samples.append(clock.seconds(partial(forward, model, cache, ids)))
            peak = torch.cuda.max_memory_allocated() - before if clock.has_graphs else 0
            del cache
        yield {
            "cache": name, "rows": rows, "tokens": tokens, "first_token_s": statistics.median(samples[1:]),
            "peak_gb": peak / 1e9, "samples": samples,
        }  # fmt: skip
