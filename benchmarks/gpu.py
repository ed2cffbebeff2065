"""Decode steps of a model on a GPU, its cache in host memory against transformers' DynamicCache beside the model.

python benchmarks/gpu.py                                    # random weights in the shape of Llama 3.1 8B, one GPU
python benchmarks/gpu.py --model NAME --rows 8 --tokens 8192
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

import reasonalloc as ra
from reasonalloc.cli import options
from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab import models
from reasonalloc.provenance import in_words, place

WARM_UP = 8


def llama_8b(device: str) -> Any:
    """The shape of Llama 3.1 8B but for a vocabulary of 49,152 (7.4 billion weights); random, bfloat16."""
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131_072, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def tokens_per_second(model: Any, cache: Any, rows: int, tokens: int, steps: int) -> float:
    """Of all rows together, over `steps` steps after a random prompt of `tokens` tokens."""

    def step(ids: torch.Tensor) -> torch.Tensor:
        logits = model(ids, **cache_argument(cache), use_cache=True, logits_to_keep=1).logits
        return logits[:, -1:].argmax(-1)  # type: ignore[no-any-return]

    ids = step(torch.randint(3, model.config.vocab_size, (rows, tokens), device=model.device))
    for _ in range(WARM_UP):
        ids = step(ids)
    ids.cpu()  # waits for the GPU
    start = time.perf_counter()
    for _ in range(steps):
        ids = step(ids)
    ids.cpu()
    return rows * steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="NAME", help="hub name, folder or smollm2 (random weights of 8B's shape)")
    parser.add_argument("--device", default="cuda", metavar="NAME", help="as torch names it (cuda)")
    parser.add_argument("--rows", type=options.positive, default=8, metavar="N", help="of the batch (8)")
    parser.add_argument("--tokens", type=options.positive, default=1024, metavar="N", help="of the prompt (1024)")
    parser.add_argument("--steps", type=options.positive, default=128, metavar="N", help="timed (128)")
    parser.add_argument("--budget", type=options.positive, default=512, metavar="SLOTS", help="(512)")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    try:
        torch.device(args.device)
        models.check_device(args.device)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error).splitlines()[0])
    if args.model:
        model, _, _ = models.load(args.model, "bfloat16", args.device)
    else:
        model = llama_8b(args.device)
    print(in_words(place(model)))
    for name in ("DynamicCache", "full", "rkv", "reasonalloc"):  # the first before ours take the model's attention over
        if name == "DynamicCache":
            cache = DynamicCache(config=model.config)
        else:
            cache = ra.ReasonAllocCache(model, ra.Config(method=name, budget=None if name == "full" else args.budget))
        speed = tokens_per_second(model, cache, args.rows, args.tokens, args.steps)
        print(f"{name:14} {speed:8.1f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
