"""`reasonalloc demo`: a batch of problems, with the full cache and within a budget."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text
from transformers.cache_utils import Cache, DynamicCache

from reasonalloc import WaveProfile
from reasonalloc.cli import options
from reasonalloc.cli.batch_watch import BatchWatch, Step, speed_of
from reasonalloc.cli.parsers.demo import PROBLEMS, SETTINGS, TOKENS
from reasonalloc.cli.stream import shorten
from reasonalloc.config import Config
from reasonalloc.files import Json, replace_text
from reasonalloc.hf import profile as wave
from reasonalloc.hf.attention import using
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.decode import Chain, Sampling, chains
from reasonalloc.hf.stats import CacheStats
from reasonalloc.hf.tokens import encode_prompt, ends
from reasonalloc.lab import plots
from reasonalloc.lab.evaluate.grading import grade
from reasonalloc.lab.evaluate.points import points_of
from reasonalloc.lab.evaluate.waves import SEED
from reasonalloc.lab.models import task_of
from reasonalloc.lab.tasks import Item, items, prompts
from reasonalloc.protocols import Model, Tokenizer
from reasonalloc.provenance import provenance
from reasonalloc.trace import Trace
from reasonalloc.trace.report import page

SCHEMA = 2
FULL = "full cache"  # transformers' own
_WAVE = (2, 128)  # prompts and tokens of a chain: enough to start with; `reasonalloc profile` takes more of both


def late_of(steps: int) -> int:
    """The first of the last quarter: a full cache grows, so its steps take longer and longer."""
    return max(1, steps - max(1, steps // 4))


@dataclass
class Answer:
    """One chain. right: of its questions; ended: by itself, not cut off."""

    id: str
    right: list[bool]
    answers: list[str]
    tokens: int
    ended: bool
    text: str


@dataclass
class Run:
    """One batch. steps: the first is the prompts'. stats: of our caches. trace: of the first problem."""

    method: str
    title: str
    answers: list[Answer]
    steps: list[Step]
    stats: CacheStats | None = None
    trace: Trace | None = None

    @property
    def right(self) -> int:
        return sum(sum(x.right) for x in self.answers)

    @property
    def ended(self) -> int:
        return sum(x.ended for x in self.answers)

    @property
    def together(self) -> int:
        """Steps in which no chain had ended."""
        return sum(x.rows == len(self.answers) for x in self.steps)

    def figures(self, steps: int) -> Json:
        """steps: for the speed."""
        decode = sum(x.seconds for x in self.steps[1:])
        return {
            "title": self.title,
            "right": self.right,
            "questions": sum(len(x.right) for x in self.answers),
            "ended": self.ended,
            "tokens": sum(x.tokens for x in self.answers),
            "tokens_per_second": speed_of(self.steps[1:steps]),
            "late_tokens_per_second": speed_of(self.steps[late_of(steps) : steps]),
            "prefill_seconds": self.steps[0].seconds,
            "decode_seconds": decode,
            "cut_share": self.stats["seconds"]["cut"] / decode if self.stats and decode else 0.0,
            "bytes": self.steps[steps - 1].size,
            "peak_bytes": max(x.size for x in self.steps),
            "mean_bytes": sum(x.size for x in self.steps) / sum(x.rows for x in self.steps),
            "answers": [asdict(x) for x in self.answers],
            "stats": self.stats,
        }


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    task = args.task or task_of(args.model) or "math500"
    configs = _configs(args)  # and what is asked, before anything slow
    sampled = task not in SETTINGS and not args.greedy
    sampling = Sampling(
        *((0.6, 0.95) if sampled else (0.0, 1.0)), max_new_tokens=args.max_new_tokens or TOKENS[task], seed=args.seed
    )
    setting = args.setting or SETTINGS.get(task)
    settings = None if setting is None else [setting]
    problems = items(task, count=args.problems or PROBLEMS[task], seed=args.seed, settings=settings)
    plots.available()
    out = options.console(args)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)

    with _status(out, "loading the model"):
        model, tokenizer, label = options.load_model(args)
    out.print(Text.assemble((label, "bold"), f", {args.dtype}, {torch.get_num_threads()} threads;"
                            f" {len(problems)} problems of {task} as one batch, the first:"))  # fmt: skip
    out.print(shorten(problems[0].prompt), style="italic", markup=False, highlight=False)
    if any(x.resolve().needs_wave and x.profile is None for x in configs):
        configs = _with_wave(configs, _wave(model, tokenizer, task, out))

    runs = [_run(model, tokenizer, problems, None, sampling, FULL, out)]
    for config in configs:
        runs.append(_run(model, tokenizer, problems, config, sampling, f"{config.method}, budget {args.budget}", out))

    steps = min(x.together for x in runs)
    figures = [x.figures(steps) for x in runs]
    out.print(_table(figures, steps, len(problems)))
    written = _write(runs, folder, steps, f"{label}, {len(problems)} problems of {task}, {args.budget} slots a head")
    seconds = time.perf_counter() - started
    out.print(f"{', '.join(map(str, written))}; {seconds:.0f} s in all", highlight=False, soft_wrap=True)
    result = {
        "schema": SCHEMA,
        "task": task,
        "budget": args.budget,
        "problems": [asdict(x) for x in problems],
        "steps_compared": steps,
        "runs": figures,
        "sampling": asdict(sampling),
        "seconds": seconds,
        "provenance": provenance(label, args.seed),
    }
    options.write_json(args.json, result)
    return 0


def _configs(args: argparse.Namespace) -> list[Config]:
    given = options.settings_of(args, ("method", "budget", "interval", "keep_prompt", "profile"))
    given.setdefault("keep_prompt", True)
    if "full" in map(str.lower, args.methods):
        raise ValueError("--methods full: the full cache runs anyway, it is transformers' own; name the others")
    return points_of(args.methods, [args.budget], [], given)


def _with_wave(configs: Sequence[Config], profile: WaveProfile) -> list[Config]:
    return [replace(x, profile=profile) if x.resolve().needs_wave and x.profile is None else x for x in configs]


def _status(out: Console, text: str) -> Status:
    if not out.is_terminal:
        out.print(f"{text} ...", highlight=False)
    return out.status(text)


def _wave(model: Model, tokenizer: Tokenizer, task: str, out: Console) -> WaveProfile:
    count, tokens = _WAVE
    if not out.is_terminal:
        out.print("measuring the layer wave ...")
    texts = [x.problem for x in prompts(task, count, SEED)]
    return wave.profile(model, tokenizer, texts, max_new_tokens=tokens, progress=out.is_terminal)


def _run(
    model: Model, tokenizer: Tokenizer, problems: Sequence[Item], config: Config | None, sampling: Sampling, title: str,
    out: Console,
) -> Run:  # fmt: skip
    """The batch with a cache of ours, or without a config with transformers' own."""
    ids = {x.id: encode_prompt(tokenizer, x.prompt, "cpu")[0].tolist() for x in problems}
    by_id, found, trace = {x.id: x for x in problems}, {}, None
    first = problems[0].id
    cache: Cache = DynamicCache(config=model.config)
    if config is not None:
        cache = ReasonAllocCache(model, config, record=True)
    if not out.is_terminal:
        out.print(f"{title}: {len(problems)} chains ...", highlight=False)
    with ExitStack() as stack:
        if config is not None:
            stack.enter_context(using(model))
        watch = stack.enter_context(BatchWatch(out, tokenizer, cache, list(ids), title))
        made = chains(
            model, cache, list(ids.items()), ends(model, tokenizer), sampling, tokenizer.pad_token_id or 0, watch=watch
        )
        for chain in made:
            found[chain.key] = answer = _graded(chain, by_id[chain.key], tokenizer)
            if chain.key == first and isinstance(cache, ReasonAllocCache):
                trace = cache.trace([*ids[first], *chain.ids], tokenizer, watch.rows.index(first))
            watch.ended(chain.key, _note(answer))
            watch.resume()
        stats = cache.stats() if isinstance(cache, ReasonAllocCache) else None
    done = Run(config.method if config else "full", title, [found[x.id] for x in problems], watch.steps, stats, trace)
    questions = sum(len(x.right) for x in done.answers)
    out.rule(f"{title}: {done.right} of {questions} answers right, {watch.speed:.0f} tokens a second", style="dim")
    return done


def _graded(chain: Chain, item: Item, tokenizer: Tokenizer) -> Answer:
    text = tokenizer.decode(chain.ids, skip_special_tokens=True)
    graded = grade(text, item.answers, item.asked)
    return Answer(item.id, graded.right, graded.answers, len(chain.ids), chain.finish == "stop", text)


def _note(answer: Answer) -> Text:
    if not answer.ended:
        return Text("cut off", style="yellow")
    good = all(answer.right)
    return Text(f"{sum(answer.right)}/{len(answer.right)} {'right' if good else 'wrong'}", "green" if good else "red")


def _table(figures: Sequence[Json], steps: int, rows: int) -> Table:
    table = Table(title=f"{rows} chains as one batch")
    table.add_column("")
    for each in figures:
        table.add_column(str(each["title"]), justify="right")
    lines = {
        "answers right": lambda x: f"{x['right']} of {x['questions']}",
        "chains that ended by themselves": lambda x: f"{x['ended']} of {rows}",
        "tokens of all chains": lambda x: f"{x['tokens']:,}",
        "cache at its peak": lambda x: f"{x['peak_bytes'] / 1e6:,.1f} MB",
        f"cache after {steps:,} steps": lambda x: f"{x['bytes'] / 1e6:,.1f} MB",
        f"tokens a second, first {steps:,} steps": lambda x: f"{x['tokens_per_second']:,.0f}",
        f"the last {steps - late_of(steps):,} of them": lambda x: f"{x['late_tokens_per_second']:,.0f}",
        "seconds until the last chain was done": lambda x: f"{x['prefill_seconds'] + x['decode_seconds']:,.0f}",
        "score + route + evict, of them": lambda x: f"{x['cut_share']:.1%}" if x["stats"] else "",
    }
    for name, text in lines.items():
        table.add_row(name, *(text(x) for x in figures))
    return table


def _write(runs: Sequence[Run], folder: Path, steps: int, title: str) -> list[Path]:
    """The page of the first problem and the pictures."""
    written = [folder / "gain.png"]
    memory = [np.array([x.size / x.rows for x in each.steps]) for each in runs]
    speed = [np.array([x.rows / x.seconds for x in each.steps[1:steps]]) for each in runs]
    shares = [x.right / sum(len(y.right) for y in x.answers) for x in runs]
    plots.gain([x.method for x in runs], [x.title for x in runs], memory, speed, shares, written[0], title)
    traced = [(x.title, x.trace) for x in runs if x.trace is not None]
    if traced:
        name, trace = traced[-1]
        if len(trace.cuts):
            written.append(folder / "budgets.png")
            trace.plot(written[-1], title=f"Budgets: {name}")
        written.insert(0, folder / "report.html")
        replace_text(str(written[0]), page([x for _, x in traced], [x for x, _ in traced]), folders=False)
    return written
