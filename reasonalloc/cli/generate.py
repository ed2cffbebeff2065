"""`reasonalloc generate`: an answer with a compressed cache, and what the cache did."""

from __future__ import annotations

import argparse
import sys

import torch
from rich.console import Console

from reasonalloc import uninstall
from reasonalloc.cli import options
from reasonalloc.cli.stream import PrintWatch, Watch
from reasonalloc.files import encoded, read_text, visible
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.tokens import encode_prompt
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.provenance import provenance


def run(args: argparse.Namespace) -> int:
    how = _sampling(args)
    config = options.config_of(args)
    prompt = _prompt(args)
    out = options.console(args)
    model, tokenizer, label = options.load_model(args, out)
    ids = encode_prompt(tokenizer, prompt, model.device)
    cache = ReasonAllocCache(model, config, record=args.trace is not None)
    watch = PrintWatch(tokenizer, lambda text: _write(out, text))
    try:
        answer(model, tokenizer, ids, cache, watch, max_new_tokens=args.max_new_tokens, seed=args.seed, **how)
    finally:
        uninstall(model)
    if args.trace is not None:
        cache.trace([*ids[0].tolist(), *watch.tokens], tokenizer, model_id=label).save(args.trace)
    stats = cache.stats()
    result = {
        "schema": 1,
        "prompt_tokens": ids.shape[1],
        "new_tokens": len(watch.tokens),
        "text": tokenizer.decode(watch.tokens, skip_special_tokens=True),
        "tokens_per_second": watch.speed,
        "prefill_seconds": watch.prefill_seconds,
        "decode_seconds": watch.decode_seconds,
        "stats": stats,
        "provenance": provenance(label, args.seed if args.sample else None),
    }
    _write(out, "\n\n")
    out.print(
        f"{result['new_tokens']:,} tokens after a prompt of {ids.shape[1]:,}, {watch.speed:.1f} a second; cache"
        f" {stats['bytes'] / 2**20:.2f} MiB now, {stats['peak_bytes'] / 2**20:.2f} at its peak,"
        f" {stats['mean_bytes'] / 2**20:.2f} on the average; {stats['ratio']:.1%} of the full cache's slots kept"
        f"{_why_more(cache)}",
        highlight=False,
        soft_wrap=True,
    )
    options.write_json(args.json, result)
    return 0


def _why_more(cache: ReasonAllocCache) -> str:
    """Where far more is kept than a ratio or budget says: short chains are hardly cut."""
    ratio, budget, interval = cache.config.ratio, cache.config.budget, cache.policy.schedule.interval
    stats = cache.stats()
    if budget is not None and not stats["evicted"] and cache.get_seq_length() > budget:
        return (
            f" (nothing was evicted: a budget of {budget:,} is what stays at a cut, and none has come yet; they come"
            f" every {interval} tokens)"
        )
    if ratio is None or stats["ratio"] <= 2 * ratio:
        return ""
    return (
        f" (a ratio of {ratio:g} is what stays at a cut; until the next one up to {interval} tokens a head come on top)"
    )


def _write(out: Console, text: str) -> None:
    out.file.write(visible(text) if out.is_terminal else text)
    out.file.flush()


def _sampling(args: argparse.Namespace) -> dict[str, float]:
    if not args.sample:
        if args.temperature is not None or args.top_p is not None:
            raise ValueError("--temperature and --top-p need --sample")
        return {"do_sample": False}
    if args.temperature == 0:
        raise ValueError("--temperature must be above 0 with --sample; without --sample the likeliest token is taken")
    return {"do_sample": True, "temperature": args.temperature or 0.6, "top_p": args.top_p or 0.95}


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        text = str(args.prompt)
    elif args.prompt_file == "-":
        text = sys.stdin.read()
    else:
        text = read_text(args.prompt_file)
    encoded(text, "the prompt")  # an argument that is no UTF-8 comes as lone surrogates
    if not text.strip():
        raise ValueError("the prompt is empty")
    return text


def answer(
    model: Model,
    tokenizer: Tokenizer,
    ids: torch.Tensor,
    cache: ReasonAllocCache,
    watch: Watch,
    *,
    seed: int = 0,
    **how: object,
) -> None:
    """Runs `model.generate` on ids [1, P] with the cache, watched. how: generate's own arguments."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **cache_argument(cache), streamer=watch,
            pad_token_id=pad, **how,
        )  # fmt: skip
