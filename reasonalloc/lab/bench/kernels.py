"""The part `kernels`: compression and attention of one layer on one core."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from reasonalloc.lab.bench import attention, compression, gathering, recall, rkv_repo, scorers, scratch, states, threads
from reasonalloc.lab.bench.machine import surroundings
from reasonalloc.lab.bench.progress import Log, Save, discard
from reasonalloc.lab.bench.resident import in_fresh_process
from reasonalloc.lab.bench.results import CompressionRow, Kernels
from reasonalloc.lab.bench.settings import INTERVAL, Settings
from reasonalloc.lab.bench.timing import cores, one_core
from reasonalloc.lab.models import EMBEDDED_LABEL, load

SCHEMA = 2
SHAPE = attention.Shape()
_MODEL_LAYERS = 8  # that real keys are taken from, spread evenly over the model


def _chains(tokens: int, log: Log) -> tuple[dict[str, states.States], str | None]:
    """Keys of both kinds, and why there are no real ones where that is so."""
    made = {"random": states.uncorrelated(SHAPE.heads, SHAPE.group, tokens, SHAPE.head_dim)}
    try:
        model, tokenizer, _ = load()
    except ModuleNotFoundError as error:
        return made, str(error)
    log(f"{EMBEDDED_LABEL} reads {tokens} tokens of MATH-500")
    count = model.config.num_hidden_layers
    picked = [round(i * (count - 1) / (_MODEL_LAYERS - 1)) for i in range(_MODEL_LAYERS)]
    layers = states.read(model, states.text_ids(tokenizer, tokens), picked)
    return {"real": states.side_by_side(layers, SHAPE.heads, SHAPE.group)} | made, None


def _compression_lines(row: CompressionRow) -> str:
    ratios = ", ".join(f"{value:.1f}x {name}" for name, value in row["ratio"].items())
    return f"compression {row['keys']} keys {row['dtype']} n={row['n']} ({row['cut']} cut): {ratios}"


def run(settings: Settings, log: Log, save: Save = discard) -> Kernels:
    """Everything, JSON-ready. RuntimeError if a result is not that of its reference."""
    quick, allowed = settings.quick, sorted(cores())
    runs = settings.rounds(full=15, quick=3)
    sizes = [384, 1152] if quick else [384, 1152, 2176, 4224]
    peers: dict[str, compression.Compress] = {}
    if settings.rkv_repo:
        peers["R-KV repository"] = compression.repository_form(rkv_repo.load(settings.rkv_repo))
    chains, no_real_keys = _chains(min(max(sizes) + (runs + 5) * INTERVAL, 8192), log)
    with one_core() as core:
        result: Kernels = {
            "schema": SCHEMA,
            "part": "kernels",
            "settings": settings.as_json(),
            "shape": {"kv_heads": SHAPE.heads, "query_heads": SHAPE.heads * SHAPE.group, "head_dim": SHAPE.head_dim},
            "runs": runs,
            "no_real_keys": no_real_keys,
            "compression": [],
            "scratch": [],
            "scorers": [],
            "attention": [],
            "gathering": [],
            "threads": [],
            "core": core,
            "provenance": surroundings("" if no_real_keys else EMBEDDED_LABEL),
        }
        dtypes = [torch.float32, torch.bfloat16]
        cut_dtypes = dtypes[:1] if quick else dtypes
        for cut in compression.rows(chains, sizes, cut_dtypes, peers, runs, first_at=1152):
            log(_compression_lines(cut))
            result["compression"].append(cut)
            save(result)
        for each in scorers.rows(chains["random"], [1152], cut_dtypes, runs):
            ratios = (f"{name} {1 / ratio:.2f}x" for name, ratio in each["cut"]["ratio"].items())
            log(f"cut by scorer {each['dtype']} n={each['n']}, R-KV's time over its own: " + ", ".join(ratios))
            result["scorers"].append(each)
            save(result)
        for again in recall.rows(chains, 1152, [1024] if quick else [1024, 4096], cut_dtypes, runs):
            costs = ", ".join(f"{value:.1f}x with {name}" for name, value in again["ratio"].items())
            log(f"cut {again['keys']} keys {again['dtype']} n={again['n']}, {again['cold']} cold: {costs}")
            result.setdefault("recall", []).append(again)
            save(result)
        scratch_sizes = [1152] if quick else sizes
        for used in scratch.rows(scratch_sizes, cut_dtypes, settings.rkv_repo, *_heads()):
            log(f"scratch {used['dtype']} n={used['n']}: " + ", ".join(_mib(k, v) for k, v in used["bytes"].items()))
            result["scratch"].append(used)
            save(result)
        lengths = [256, 2048] if quick else [256, 1024, 2048, 4096, 8192]
        attention_dtypes = dtypes if quick else [*dtypes, torch.float16]
        for step in attention.rows(SHAPE, attention_dtypes, [1, 8], lengths, runs):
            log(
                f"attention {step['dtype']} batch={step['batch']} n={step['n']} from {step['from']}:"
                f" {step['ratio']['SDPA grouped']:.1f}x SDPA,"
                f" {step['roofline_share']['ours']:.0%} of the read bandwidth"
            )
            result["attention"].append(step)
            save(result)
        for gathered in gathering.rows(SHAPE, dtypes[:1] if quick else dtypes, lengths, runs):
            shares = ", ".join(f"{name} {ratio - 1:+.1%}" for name, ratio in gathered["ratio"].items())
            log(f"gathering {gathered['dtype']} n={gathered['n']}: {shares}")
            result["gathering"].append(gathered)
            save(result)
    if len(allowed) > 1:
        names = ["bfloat16"] if quick else ["float32", "bfloat16"]
        result["threads"] = in_fresh_process(
            threads.measure, allowed=allowed, shape=SHAPE, dtypes=names, batches=[1, 8], n=4096, runs=runs
        )
    return result


def _heads() -> tuple[int, int, int]:
    return SHAPE.heads, SHAPE.group, SHAPE.head_dim


def _mib(name: str, found: Mapping[str, Mapping[str, int]]) -> str:
    return f"{name} {max(x['peak_bytes'] for x in found.values()) / 2**20:.2f} MiB"
