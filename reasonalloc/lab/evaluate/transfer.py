"""Whether a model's wave on one task is its wave on another: waves by task and prompt, and their distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
import torch
import transformers

from reasonalloc.allocate import robustify
from reasonalloc.files import Json
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.profile import measure
from reasonalloc.lab.evaluate import texts
from reasonalloc.lab.evaluate.distances import Floats, earth_movers, matrix, rank_correlation, separation, share
from reasonalloc.lab.evaluate.transfer_result import Chain, Distances, Measuring, Transfer
from reasonalloc.lab.problems import Problem
from reasonalloc.lab.tasks import prompts
from reasonalloc.policy.wave import WaveProfile
from reasonalloc.protocols import Model, Tokenizer

SHUFFLES = 200


def evaluate_transfer(
    model: Model,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    settings: Measuring | None = None,
    *,
    provenance: Json | None = None,
    progress: Callable[[], None] | None = None,
) -> Transfer:
    """Measures the wave of a model on each task's prompts and compares them.

    tasks: names of `tasks.REGISTRY`. Chains are generated with the full cache and kept on disk (`texts.generate`), so
    that an interrupted run goes on where it stopped. progress: called after each chain. Raises ValueError for no or
    unknown tasks and for more prompts than a task has, ModuleNotFoundError without scipy.
    """
    settings = settings or Measuring()
    names = list(dict.fromkeys(tasks))
    if not names:
        raise ValueError("give at least one task")
    chosen = {task: prompts(task, settings.prompts, settings.seed) for task in names}  # errors before anything slow
    earth_movers((0,), [1.0], [1.0])
    measured = []
    for task, items in chosen.items():
        for found in _chains(model, tokenizer, task, items, settings):
            measured.append(found)
            if progress:
                progress()
    chains, layers = [chain for chain, _ in measured], measured[0][1]
    by_prompt = _by_prompt(chains)
    profiles = {}
    for task in names:
        own = [demand for (of, _), demand in by_prompt.items() if of == task]
        profiles[task] = _profile(model, task, own, layers, chosen[task], settings, provenance)
    demands = list(by_prompt.values())
    labels = [names.index(task) for task, _ in by_prompt]
    means = [np.asarray(profiles[task].demand) for task in names]
    return Transfer(
        names, layers, chains, profiles,
        wave=_distances(layers, means, demands, labels, chains, lambda x: x, settings.seed),
        budgets=_distances(layers, means, demands, labels, chains, _budgets(len(layers), settings), settings.seed),
        settings=settings, provenance=provenance or {},
    )  # fmt: skip


def _chains(
    model: Model, tokenizer: Tokenizer, task: str, items: Sequence[Problem], settings: Measuring
) -> Iterator[tuple[Chain, tuple[int, ...]]]:
    for seed in range(settings.seed, settings.seed + settings.samples):
        generated = texts.generate(model, tokenizer, items, settings.max_new_tokens, settings.temperature, seed)
        for text in generated:
            ids = torch.cat([text.prompt, text.solution]).to(model.device)
            ids = ids if settings.last is None else ids[-settings.last :]
            demand = measure(model, ids[None], settings.rho, settings.queries)
            tokens = len(text.prompt), len(text.solution)
            yield Chain(task, text.id, seed, *tokens, tuple(demand.values())), tuple(demand)


def _by_prompt(chains: Sequence[Chain]) -> dict[tuple[str, str], Floats]:
    """Demand of each (task, prompt), the mean over its chains."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for chain in chains:
        found.setdefault((chain.task, chain.prompt), []).append(chain.demand)
    return {key: np.mean(demands, axis=0) for key, demands in found.items()}


def _profile(
    model: Model, task: str, demands: Sequence[Floats], layers: tuple[int, ...], items: Sequence[Problem],
    settings: Measuring, provenance: Json | None,
) -> WaveProfile:  # fmt: skip
    """As `ra.profile` would give it for these prompts."""
    source = {
        "model": (provenance or {}).get("model") or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        "task": task,
        "prompts": [x.id for x in items],
        "prompt_count": len(items),
        "max_new_tokens": settings.max_new_tokens,
        "queries": settings.queries,
        "last": settings.last,
        "temperature": settings.temperature,
        "samples": settings.samples,
        "seed": settings.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    mean = np.mean(demands, axis=0)
    return WaveProfile(tuple(float(x) for x in mean), layers, fingerprint(model), settings.rho, source)


def _budgets(count: int, settings: Measuring) -> Callable[[Floats], Floats]:
    """A wave as the layers' budgets."""
    return lambda wave: robustify(wave, settings.budget * count).astype(np.float64)


def _distances(
    layers: Sequence[int], means: Sequence[Floats], demands: Sequence[Floats], labels: Sequence[int],
    chains: Sequence[Chain], form: Callable[[Floats], Floats], seed: int,
) -> Distances:  # fmt: skip
    """form: what of a wave is compared."""
    tasks = [form(x) for x in means]
    rng = np.random.default_rng(seed)
    shuffled = [earth_movers(layers, form(x), form(rng.permutation(x))) for x in means for _ in range(SHUFFLES)]
    lengths: dict[tuple[str, str], list[int]] = {}
    for chain in chains:
        lengths.setdefault((chain.task, chain.prompt), []).append(chain.prompt_tokens + chain.chain_tokens)
    between = matrix(layers, [form(x) for x in demands])
    return Distances(
        tasks=matrix(layers, tasks).tolist(),
        moved=[[float(abs(share(a) - share(b)).sum() / 2) for b in tasks] for a in tasks],
        flat=[earth_movers(layers, x, np.ones(len(layers))) for x in tasks],
        shuffled=float(np.mean(shuffled)),
        length=rank_correlation(between, [np.log(np.mean(x)) for x in lengths.values()]),
        chains=_between_chains(layers, chains, form),
        prompts=separation(between, labels, seed),
    )


def _between_chains(layers: Sequence[int], chains: Sequence[Chain], form: Callable[[Floats], Floats]) -> float | None:
    pairs = [
        earth_movers(layers, form(np.asarray(a.demand)), form(np.asarray(b.demand)))
        for i, a in enumerate(chains) for b in chains[:i]
        if (a.task, a.prompt) == (b.task, b.prompt)
    ]  # fmt: skip
    return float(np.mean(pairs)) if pairs else None
