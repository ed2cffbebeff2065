"""`reasonalloc profile`: measures the layer wave of a model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console

from reasonalloc import WaveProfile
from reasonalloc.cli import options
from reasonalloc.files import read_text
from reasonalloc.hf import profile as wave
from reasonalloc.lab import plots
from reasonalloc.lab.problems import math500

_WIDTH = 50


def run(args: argparse.Namespace) -> int:
    prompts = _prompts(args.prompts)
    out = options.console(args)
    model, tokenizer, label = options.load_model(args, out)
    profile = wave.profile(
        model, tokenizer, prompts, max_new_tokens=args.max_new_tokens, rho=args.rho, progress=out.is_terminal
    )
    profile.save(args.output)
    show(profile, out, label)
    out.print(f"saved to {args.output}", highlight=False)
    if args.plot:
        plots.wave(profile, args.plot, label)
    options.write_json(args.json, asdict(profile))
    return 0


def _prompts(text: str) -> list[str]:
    if text.isdecimal():
        if not 1 <= int(text) <= wave.MOST_PROMPTS:
            raise ValueError(f"--prompts must be a file or 1 to {wave.MOST_PROMPTS} problems, got {text}")
        return [x.problem for x in math500(int(text))]
    prompts = [x for x in read_text(text).split("\n") if x.strip()]
    if not 1 <= len(prompts) <= wave.MOST_PROMPTS:
        raise ValueError(f"{text} must hold 1 to {wave.MOST_PROMPTS} prompts, one a line, got {len(prompts)}")
    return prompts


def show(profile: WaveProfile, out: Console, label: str) -> None:
    """Prints the wave as bars."""
    out.print(f"layer wave of {label}: tokens that hold {profile.rho:.0%} of a layer's attention", highlight=False)
    for line in bars(profile):
        out.print(line, highlight=False)


def bars(profile: WaveProfile) -> Iterator[str]:
    most = max(profile.demand)
    for layer, demand in zip(profile.layers, profile.demand, strict=True):
        eighths = round(demand / most * _WIDTH * 8)
        yield f"{layer:4d} {'█' * (eighths // 8)}{' ▏▎▍▌▋▊▉'[eighths % 8].strip()} {demand:.0f}"
