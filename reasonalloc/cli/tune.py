"""`reasonalloc tune`: layer budgets that a model's answers chose."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from reasonalloc.cli import options, plan, settings, study
from reasonalloc.config import Config
from reasonalloc.files import visible
from reasonalloc.lab.evaluate.ablations import Around
from reasonalloc.lab.evaluate.cells import Cell, cell_name
from reasonalloc.lab.evaluate.orders import followed
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.evaluate.tuning import Tuned, candidates, schedule, tune
from reasonalloc.lab.evaluate.waves import GivenWave
from reasonalloc.lab.table import Section
from reasonalloc.lab.tasks import Item, other_items
from reasonalloc.policy.wave import WaveProfile

PROFILE = "order.json"


def run(args: argparse.Namespace) -> int:
    if args.shard is not None:
        raise ValueError("each round of tune depends on the one before, so it has no shards (--ray spreads its chains)")
    if args.orders < 2:
        raise ValueError(f"--orders counts the wave's own, so it must be at least 2, got {args.orders}")
    given = options.settings_of(args, settings.VARIED)
    config = Config(method=args.method, budget=args.budget, **given)
    followed(config)
    evaluation, out = study.study_of(args), options.console(args)
    test = _test_items(args, evaluation)
    if args.dry_run:
        return plan.show(args, out, _planned(evaluation, config, args.orders))
    evaluation.records.open(evaluation.settings)  # other settings are an error before a wave is measured
    if args.regrade:
        evaluation.regrade()  # before they choose
    with study.status_line(out, evaluation):
        wave = config.profile or evaluation.waves.get()
    cells = candidates(config, wave, args.orders, args.keep_below)
    with study.progress_bar(out, evaluation) as progress:
        found = tune(evaluation, cells, progress)
    path = evaluation.folder / PROFILE
    about = {"method": config.method, "budget": args.budget, "kept": found.best.name, "chosen_by": evaluation.settings}
    _profile(found, about).save(path)
    out.print(_rounds(found).rich())
    out.print(_told(found, path), highlight=False, markup=False)
    around = Around(GivenWave(evaluation.task, wave), args.budget, given)
    beside = [around.cell("full"), around.cell("rkv"), found.start]
    evaluation.items = test
    evaluation.about |= {"tuned": {"kept": found.best.name, "rounds": [asdict(x) for x in found.rounds]}}
    study.run_and_report(args, evaluation, [*beside, *([found.best] if found.best != found.start else [])], "tuned")
    return 0


def _test_items(args: argparse.Namespace, evaluation: Study) -> list[Item]:
    """Problems that the order is not chosen by."""
    seed = args.seed + 1 if args.test_seed is None else args.test_seed
    found = other_items(args.task, evaluation.items, count=args.problems, seed=seed, settings=args.settings)
    used = {x.hash for x in evaluation.items}
    if again := sum(x.hash in used for x in found):
        raise ValueError(
            f"{again} of the {len(found)} problems to test on are among those that the order is chosen by:"
            " ask for fewer (--problems), or give another --test-seed"
        )
    return found


def _planned(evaluation: Study, config: Config, orders: int) -> list[tuple[Study, list[Cell]]]:
    """What each round adds, by stand-ins: the wave need not be measured yet."""
    name, parts, before = cell_name(config), [], 0
    cells = [Cell(name, config), *(Cell(f"{name} order={i}", config) for i in range(orders - 1))]
    for size, problems in schedule(orders, len(evaluation.items)):
        parts.append((replace(evaluation, items=evaluation.items[before:problems]), cells[:size]))
        before = problems
    return parts


def _profile(found: Tuned, about: dict[str, object]) -> WaveProfile:
    wave = found.best.config.profile
    if wave is None:
        raise TypeError("a cell of tune has a wave")
    return replace(wave, source={**wave.source, "tuned": about})


def _rounds(found: Tuned) -> Section:
    """What each cell scored in each round that it came to, those that came furthest first."""
    names = list({name: None for each in reversed(found.rounds) for name in each.scores})
    rows = [[name, *(f"{x.scores[name]:.1%}" if name in x.scores else "" for x in found.rounds)] for name in names]
    heads = ["cell", *(f"{x.problems} problems" for x in found.rounds)]
    return Section("Share of the questions answered, by round", heads, rows)


def _told(found: Tuned, path: Path) -> str:
    where = visible(str(path))
    if found.best == found.start:
        return f"No order answers more than the wave's own, which is in {where}. On other problems:"
    last = found.rounds[-1]
    ahead = last.scores[found.best.name] - last.scores[found.start.name]
    return (
        f"{found.best.name} is kept, {where}. It is {100 * ahead:.1f} points ahead of the wave on the {last.problems}"
        f" problems that it was chosen by, as the best of {len(found.rounds[0].scores)}. On other problems:"
    )
