"""The cache on a GPU: layers beside torch, FlashInfer and FlashAttention, decode steps beside transformers' caches.

python benchmarks/gpu.py                            # all parts, random weights in the shape of Llama 3.1 8B, one GPU
python benchmarks/gpu.py decode --model NAME        # one part, another model
REASONALLOC_BACKEND=cuda-emulated python benchmarks/gpu.py --device cpu --tiny   # that it runs, without a GPU

Each row goes to the results file as it ends (machine, driver, clocks, every sample); a table follows. What is timed has
been compared with float32, or with transformers' logits, before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # else a growing cache allocates at each step

import torch
from gpu_decode import Lengths, decoding, llama, prompts, smollm2, steps
from gpu_kernels import kernels
from gpu_layers import Case, Shape, attention, compression
from gpu_timing import Clock, gpu_state

from reasonalloc.files import replace_text
from reasonalloc.lab import models
from reasonalloc.provenance import in_words, provenance

Row = dict[str, Any]
PARTS = ("attention", "kernels", "cuts", "steps", "decode", "prompts")


def layer_shape(tiny: bool) -> tuple[Shape, torch.dtype]:
    return (Shape(2, 2, 64), torch.float32) if tiny else (Shape(), torch.bfloat16)


def attention_rows(tiny: bool, clock: Clock, rounds: int) -> Iterator[Row]:
    shape, dtype = layer_shape(tiny)
    sizes = [(1, 40), (2, 33)] if tiny else [
        (1, 128), (1, 1024), (1, 8192), (1, 32_768), (8, 1024), (32, 128), (32, 512), (32, 1024), (32, 4096),
        (256, 128), (256, 1024),
    ]  # fmt: skip
    for rows, n in sizes:
        yield attention(shape, Case(rows, n), dtype, clock, rounds)
    for rows, n in [(2, 40)] if tiny else [(32, 1024), (256, 1024)]:
        yield attention(shape, Case(rows, n, True), dtype, clock, rounds)


def kernel_rows(tiny: bool, clock: Clock) -> Iterator[Row]:
    shape, dtype = layer_shape(tiny)
    for rows, n in [(2, 24)] if tiny else [(1, 1024), (32, 1024), (256, 1024)]:
        yield kernels(shape, rows, n, dtype, clock)
    for scorer in ("h2o", "lazy"):  # what gathering costs a step
        yield kernels(shape, 2 if tiny else 32, 24 if tiny else 1024, dtype, clock, scorer)


def cut_rows(tiny: bool, clock: Clock, rounds: int) -> Iterator[Row]:
    shape, dtype = layer_shape(tiny)
    for rows, budget in [(2, 24)] if tiny else [(1, 1024), (32, 128), (32, 512), (32, 1024), (32, 2048)]:
        yield compression(shape, rows, budget, dtype, clock, max(3, rounds // 4))


def decode_rows(model: Any, tiny: bool, clock: Clock) -> Iterator[Row]:
    sizes: list[tuple[int, int, int | None]] = [(2, 16, 40)] if tiny else [
        (1, 1024, 16_384), (8, 1024, 16_384), (128, 1024, None),  # 8 rows of 16,384 take what 128 of 1,024 do
        (32, 128, None), (32, 2048, None),
    ]  # fmt: skip
    cases = [Lengths(rows, budget, length, 8 if tiny else 128) for rows, budget, length in sizes]
    for case in cases:
        yield from decoding(model, case, clock)


def prompt_rows(model: Any, tiny: bool, clock: Clock) -> Iterator[Row]:
    for rows, tokens in [(1, 60)] if tiny else [(1, 8192), (1, 32_768)]:
        yield from prompts(model, rows, tokens, 16 if tiny else 1024, clock)


def step_rows(args: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    """Of a small model in many rows, where what is not attention or weights is seen."""
    model = llama(args.device, tiny=True) if args.tiny else smollm2(args.device)
    for rows, budget, interval in [(2, 24, 8)] if args.tiny else [(32, 384, 128), (192, 384, 128)]:
        yield from steps(model, rows, budget, interval, clock)


def median_us(samples: list[float]) -> str:
    return f"{statistics.median(samples) * 1e6:.1f}"


def table(part: str, rows: list[Row], copy_rate: float) -> Iterator[str]:
    """Of a part's rows, in Markdown."""
    if part == "attention":
        columns = ("rows", "n", "ragged", "contender", "us", "in a graph, us", "share of a copy", "attention alone, us")
        yield "| " + " | ".join(columns) + " |"
        yield "|---|---|---|---|---|---|---|---|"
        for row in rows:
            for name, samples in row["seconds"].items():
                graphed = row["graph_seconds"].get(name)
                best = statistics.median(graphed or samples)
                share = row["bytes"] / best / copy_rate
                own = row["kernels"][name]
                alone = sum(taken for kernel, taken in own.items() if name != "ours" or kernel.startswith("attend"))
                yield (
                    f"| {row['rows']} | {row['n']} | {'yes' if row['ragged'] else ''} | {name} | {median_us(samples)} |"
                    f" {median_us(graphed) if graphed else ''} | {share:.0%} | {f'{alone:.1f}' if own else ''} |"
                )
        return
    if part == "cuts":
        yield "| rows | budget | ours, us | R-KV's form, us | ratio |"
        yield "|---|---|---|---|---|"
        for row in rows:
            ours, theirs = (statistics.median(row["seconds"][name]) for name in ("ours", "R-KV's form"))
            yield f"| {row['rows']} | {row['budget']} | {ours * 1e6:.0f} | {theirs * 1e6:.0f} | {theirs / ours:.1f} |"
        return
    if part == "kernels":
        yield "| rows | n | scorer | of | kernel | us |"
        yield "|---|---|---|---|---|---|"
        for row in rows:
            for what in ("step", "cut"):
                for name, us in sorted(row[what].items(), key=lambda x: -x[1]):
                    yield f"| {row['rows']} | {row['n']} | {row['scorer']} | {what} | `{name}` | {us} |"
        return
    keys = [name for name in rows[0] if name != "samples"] if rows else []
    yield "| " + " | ".join(keys) + " |"
    yield "|" + "---|" * len(keys)
    for row in rows:
        yield "| " + " | ".join(f"{row[k]:.4g}" if isinstance(row[k], float) else str(row[k]) for k in keys) + " |"


def run(args: argparse.Namespace) -> dict[str, Any]:
    clock = Clock(torch.device(args.device), 2 if args.tiny else 32)
    rounds = 3 if args.tiny else 30
    name = args.model or "random, Llama 3.1 8B's shape"
    result: dict[str, Any] = {"provenance": provenance(name), "gpu": gpu_state()}
    result["copy_bytes_per_second"] = clock.copy_rate()
    print(in_words(result["provenance"]), result["gpu"], f"copy {result['copy_bytes_per_second'] / 1e12:.2f} TB/s")
    made: list[Any] = []

    def model() -> Any:
        if not made:
            made.append(
                models.load(args.model, "bfloat16", args.device)[0] if args.model else llama(args.device, args.tiny)
            )
        return made[0]

    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "attention": lambda: attention_rows(args.tiny, clock, rounds),
        "kernels": lambda: kernel_rows(args.tiny, clock),
        "cuts": lambda: cut_rows(args.tiny, clock, rounds),
        "steps": lambda: step_rows(args, clock),
        "decode": lambda: decode_rows(model(), args.tiny, clock),
        "prompts": lambda: prompt_rows(model(), args.tiny, clock),
    }
    for part in args.parts or PARTS:
        result[part] = []
        for row in parts[part]():
            result[part].append(row)
            if args.output:  # what there is so far
                replace_text(args.output, json.dumps(result, indent=1) + "\n")
        print(f"\n{part}\n", *table(part, result[part], result["copy_bytes_per_second"]), sep="\n", flush=True)
    result["gpu_afterwards"] = gpu_state()
    if args.output:
        replace_text(args.output, json.dumps(result, indent=1) + "\n")
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--model", metavar="NAME", help="hub name, folder or smollm2 (random weights of 8B's shape)")
    parser.add_argument("--device", default="cuda", metavar="NAME", help="as torch names it (cuda)")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--output", metavar="FILE", help="JSON with every sample, written after each row")
    args = parser.parse_args(arguments)
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    torch.set_grad_enabled(False)
    try:
        torch.device(args.device)
        models.check_device(args.device)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error).splitlines()[0])
    run(args)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
