"""`reasonalloc demo`: the main job on real input, from the wave to a table and two pictures."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from reasonalloc import WaveProfile, uninstall
from reasonalloc.cli import options
from reasonalloc.cli.generate import answer
from reasonalloc.cli.profile import show
from reasonalloc.cli.stream import LiveWatch, shorten
from reasonalloc.config import Config
from reasonalloc.hf import profile as wave
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.stats import CacheStats
from reasonalloc.hf.tokens import encode_prompt
from reasonalloc.lab import plots
from reasonalloc.lab.evaluate.forcing import forced_log_probs, full_log_probs
from reasonalloc.lab.problems import find, math500
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.provenance import provenance

SCHEMA = 1
MOST_CUT_SHARE = 0.02  # of the decode time that scoring, routing and evicting may take


@dataclass
class Run:
    """One generation: its tokens, times (seconds), the cache's figures, and budgets after each cut.

    cut_seconds: the part of decode_seconds that scoring, routing and evicting took. trace: (tokens of the sequence,
    budgets [L][H]) after each cut.
    """

    tokens: list[int]
    tokens_per_second: float
    prefill_seconds: float
    decode_seconds: float
    cut_seconds: float
    stats: CacheStats
    trace: list[tuple[int, list[list[int]]]] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    problem = find(args.problem)
    given = options.settings_of(args, ("method", "budget", "ratio", "max_bytes", "interval", "profile"))
    Config(method=args.method, budget=args.budget, **given)  # before anything slow
    out = options.console(args)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)

    with _status(out, "loading the model"):
        model, tokenizer, label = options.load_model(args)
    out.print(
        Text.assemble((label, "bold"), f", {args.dtype}, {torch.get_num_threads()} threads; MATH-500 {problem.id}")
    )
    out.print(problem.problem, style="italic", markup=False, highlight=False)

    ids = encode_prompt(tokenizer, problem.problem, model.device)
    profile = _wave(model, tokenizer, problem.id, out)
    show(profile, out, label)
    config = Config(method=args.method, budget=args.budget, profile=profile, **given)
    how = {"do_sample": False} if args.greedy else {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
    how |= {"min_new_tokens": args.tokens, "max_new_tokens": args.tokens, "seed": args.seed}
    try:
        full = _generate(model, tokenizer, ids, Config(method="full"), how, "the full cache", out)
        title = f"{args.method}, budget {args.budget}"
        ours = _generate(model, tokenizer, ids, config, how, title, out)
        agreement = _agreement(model, tokenizer, ids, config, full.tokens[: args.forced], out)
    finally:
        uninstall(model)

    plots.wave(profile, folder / "wave.png", label)
    _draw(ours, folder / "budgets.png", f"Budgets of {label}: {title}", ids.shape[1] + args.tokens)
    share = ours.cut_seconds / ours.decode_seconds if ours.decode_seconds else 0.0
    compared = min(args.forced, len(full.tokens))
    out.print(_table(full, ours, title, agreement, compared, share))
    out.print(
        f"score + route + evict: {share:.2%} of the decode time, asked for at most {MOST_CUT_SHARE:.0%};"
        f" pictures {folder / 'wave.png'} and {folder / 'budgets.png'}; {time.perf_counter() - started:.0f} s in all",
        highlight=False,
        soft_wrap=True,
    )
    result = {
        "schema": SCHEMA,
        "problem": asdict(problem),
        "prompt_tokens": ids.shape[1],
        "method": args.method,
        "budget": args.budget,
        "profile": asdict(profile),
        "full": asdict(full),
        "compressed": asdict(ours),
        "agreement": agreement,
        "agreement_tokens": compared,
        "cut_share": share,
        "seconds": time.perf_counter() - started,
        "sampling": {k: v for k, v in how.items() if k in ("do_sample", "temperature", "top_p")},
        "provenance": provenance(label, None if args.greedy else args.seed),
    }
    options.write_json(args.json, result)
    return 0


def _status(out: Console, text: str) -> Status:
    if not out.is_terminal:
        out.print(f"{text} ...", highlight=False)
    return out.status(text)


def _wave(model: Model, tokenizer: Tokenizer, but: str, out: Console) -> WaveProfile:
    """The wave on two other problems: enough for a picture, a profile for use takes up to 8 and longer chains."""
    prompts = [x.problem for x in math500(3) if x.id != but][:2]
    if not out.is_terminal:
        out.print("measuring the wave ...")
    return wave.profile(model, tokenizer, prompts, max_new_tokens=128, progress=out.is_terminal)


def _generate(
    model: Model, tokenizer: Tokenizer, ids: torch.Tensor, config: Config, how: dict[str, Any], title: str, out: Console
) -> Run:
    cache = ReasonAllocCache(model, config)
    trace: list[tuple[int, list[list[int]]]] = []
    cuts: list[float] = []  # seconds in the cache's cuts up to each token

    def on_token() -> None:
        stats = cache.stats()
        cuts.append(stats["seconds"]["cut"])
        if stats["routings"] > len(trace):
            trace.append((cache.get_seq_length(), stats["budgets"][0]))

    tokens = how["max_new_tokens"]
    if not out.is_terminal:
        out.print(f"generating {tokens:,} tokens with {title} ...", highlight=False)
    with LiveWatch(out, tokenizer, title, tokens, on_token) as watch:
        answer(model, tokenizer, ids, cache, watch, **how)
    out.rule(f"{title}: {watch.speed:.1f} tokens a second", style="dim")
    text = tokenizer.decode(watch.tokens, skip_special_tokens=True)
    out.print(shorten(text), markup=False, highlight=False)
    return Run(
        watch.tokens, watch.speed, watch.prefill_seconds, watch.decode_seconds, cuts[-1] - cuts[0], cache.stats(), trace
    )


def _agreement(
    model: Model, tokenizer: Tokenizer, ids: torch.Tensor, config: Config, tokens: list[int], out: Console
) -> float:
    """Share of tokens where both caches, reading the full cache's text, rank the same token first.

    tokens: the full cache's. The end of text is ruled out here as in the generation.
    """
    cache, same, text = ReasonAllocCache(model, config), 0, torch.tensor(tokens)
    ends = _end_tokens(model, tokenizer)
    if not out.is_terminal:
        out.print(f"comparing on {len(tokens):,} tokens under teacher forcing ...", highlight=False)
    full = full_log_probs(model, ids[0], text)
    with options.bar(out) as progress:
        task = progress.add_task("teacher forcing", total=len(tokens))
        for own, other in zip(forced_log_probs(model, cache, ids[0], text), full, strict=True):
            own[ends] = other[ends] = float("-inf")
            same += int(own.argmax() == other.argmax())
            progress.advance(task)
    return same / len(tokens)


def _end_tokens(model: Model, tokenizer: Tokenizer) -> list[int]:
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


def _draw(run: Run, path: Path, title: str, end: int) -> None:
    if not run.trace:
        return
    times, values = zip(*run.trace, strict=True)
    plots.budgets(times, np.array(values), run.stats["layers"], path, title, end)


def _table(full: Run, ours: Run, title: str, agreement: float, compared: int, share: float) -> Table:
    table = Table(title=f"{len(ours.tokens):,} tokens each")
    table.add_column("")
    table.add_column("full cache", justify="right")
    table.add_column(title, justify="right")
    table.add_row("tokens a second", f"{full.tokens_per_second:.1f}", f"{ours.tokens_per_second:.1f}")
    sizes: dict[str, list[float]] = {
        "cache now": [x.stats["bytes"] for x in (full, ours)],
        "cache at its peak": [x.stats["peak_bytes"] for x in (full, ours)],
        "cache on the average": [x.stats["mean_bytes"] for x in (full, ours)],
    }
    for name, pair in sizes.items():
        table.add_row(name, *(f"{size / 2**20:.2f} MiB" for size in pair))
    slots = (sum(n for layer in x.stats["slots"][0] for n in layer) for x in (full, ours))
    table.add_row("slots kept", *(f"{n:,} ({x.stats['ratio']:.1%})" for n, x in zip(slots, (full, ours), strict=True)))
    table.add_row(f"top-1 agreement, {compared:,} tokens", "100.0%", f"{agreement:.1%}")
    table.add_row("score + route + evict, of time", "0.00%", f"{share:.2%}")
    return table
