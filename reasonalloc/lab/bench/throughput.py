"""The part `throughput`: a whole model that decodes, on all cores."""

from __future__ import annotations

from reasonalloc.lab.bench import steps
from reasonalloc.lab.bench.decoding import Subject, subject
from reasonalloc.lab.bench.equal_memory import break_even, equal_memory
from reasonalloc.lab.bench.machine import surroundings
from reasonalloc.lab.bench.progress import Log, Save, discard
from reasonalloc.lab.bench.results import Throughput
from reasonalloc.lab.bench.settings import MEMORY_LIMIT, MOST_ROWS, QUICK_MEMORY_LIMIT, Settings
from reasonalloc.lab.models import load

SCHEMA = 1
_TEXT = 4096  # tokens that the model reads to fill caches with


def run(
    settings: Settings,
    log: Log,
    save: Save = discard,
    given: Subject | None = None,
    share_budgets: tuple[int, ...] = (),
) -> Throughput:
    """Everything, JSON-ready. given: a model instead of SmolLM2; share_budgets: for the shares of cuts."""
    quick = settings.quick
    budgets = settings.budgets or ((128,) if quick else (128, 256, 512))
    chains = settings.chains or ((512,) if quick else (1024, 4096, 8192))
    limit = settings.memory_limit or (QUICK_MEMORY_LIMIT if quick else MEMORY_LIMIT)
    log("the model reads the text that caches are filled with")
    if given is None:
        model, tokenizer, label = load()
        given = subject(model, tokenizer, label, 512 if quick else _TEXT)
    names = [f"reasonalloc-{x}" for x in budgets]
    most_rows = settings.most_rows or MOST_ROWS
    result: Throughput = {
        "schema": SCHEMA,
        "part": "throughput",
        "settings": settings.as_json(),
        "memory_limit": limit,
        "most_rows": most_rows,
        "provenance": surroundings(given.label),
    }
    batches, lengths = ([1, 4], [512]) if quick else ([1, 8], [256, 1024, 4096])
    rounds = settings.rounds(full=16, quick=4)
    contenders_now = steps.CONTENDERS[:4] if quick else steps.CONTENDERS
    result["steps"] = []
    for step in steps.step_times(given, batches, lengths, contenders_now, rounds):
        each = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in step["step_s"].items())
        log(f"ms a step, batch {step['batch']}, {step['length']} tokens: {each}")
        result["steps"].append(step)
        save(result)
    result["cuts"] = []
    shares = share_budgets or ((128,) if quick else (128, 256, 512, 1024))
    for cuts in steps.cut_shares(given, [1] if quick else [1, 8], [f"reasonalloc-{x}" for x in shares]):
        log(f"cuts of {cuts['cache']}, batch {cuts['batch']}: {cuts['share']:.2%} of the decode time")
        result["cuts"].append(cuts)
        save(result)
    result["overhead"] = []
    watched = ("dynamic", "static", "full", "reasonalloc-256")
    for added in steps.overhead(given, [1, 8], watched, 16, 10 if quick else 50):
        log(f"overhead of {added['cache']}, batch {added['batch']}: {added['overhead_us']:.0f} us a layer")
        result["overhead"].append(added)
        save(result)
    contenders = ["static", "dynamic", "full", *names]
    runs = settings.rounds(full=5, quick=2)
    result["whole_chains"] = settings.whole_chains
    result["equal_memory"] = []
    for chain in equal_memory(given, contenders, chains, limit, most_rows, runs, settings.whole_chains, log):
        result["equal_memory"].append(chain)
        save(result)
    result["break_even"] = list(break_even(given, names, max(chains), runs, log))
    save(result)
    return result
