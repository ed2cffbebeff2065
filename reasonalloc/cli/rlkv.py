"""`reasonalloc rlkv train`: gates that tell full heads from local ones."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields

from reasonalloc.cli import options
from reasonalloc.lab.rlkv import picture
from reasonalloc.lab.rlkv.settings import Line, Settings
from reasonalloc.lab.rlkv.train import Trainer


def run(args: argparse.Namespace) -> int:
    settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
    out = options.console(args)
    model, tokenizer, label = options.load_model(args)
    trainer = Trainer(args.folder, model, tokenizer, label, settings, args.problems)
    with options.bar(out) as progress:
        pool = progress.add_task("prompts", total=settings.pool)
        task = progress.add_task("steps", total=settings.steps, completed=trainer.state.step)

        def show(line: Line) -> None:
            progress.update(pool, completed=settings.pool)
            progress.update(task, completed=line.step)
            worth = f"reward {line.reward:.2f}" if settings.objective == "rlkv" else f"loss {line.loss:.4g}"
            progress.console.print(
                f"step {line.step}: {worth}, mean gate {line.mean_gate:.3f}, sparsity {line.sparsity:.2f},"
                f" {line.rollout_seconds + line.update_seconds:.0f} s",
                highlight=False,
            )

        trainer.run(args.minutes, show, lambda n: progress.update(pool, completed=n))
    path = trainer.write()
    picture.gates(trainer.lines, trainer.values(), settings.objective, args.folder / "gates.png")
    out.print(f"gates are in {path}", highlight=False)
    trainer.close()
    options.write_json(args.json, {"gates": str(path), "log": [asdict(x) for x in trainer.lines]})
    return 0
