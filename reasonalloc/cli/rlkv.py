"""`reasonalloc rlkv train`: gates that tell full heads from local ones."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path

from reasonalloc.cli import options
from reasonalloc.lab import plots
from reasonalloc.lab.rlkv.train import OBJECTIVES, Line, Settings, Trainer

_TYPES = {"int": int, "float": float, "str": str}


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("rlkv", help="train gates for the methods rlkv and duo")
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    train = kinds.add_parser(
        "train",
        help="by reinforcement learning, or by distillation",
        description="Trains a gate for each KV head: 1 for one that needs all tokens, 0 for one that does with the"
        " first and the newest. The model is frozen; a head's output is gate x full + (1 - gate) x local attention."
        " RLKV"
        " rewards right answers and lowers gates as long as they stay right; duo compares hidden states. The"
        " folder gets"
        " the gates in the published form (adapter_weights.tsv or full_attention_heads.tsv) with a JSON"
        " beside them, log"
        " and picture. A run that was killed goes on when started again.",
    )
    train.add_argument("folder", type=Path, help="of the run")
    options.add_model(train, reasoner=True)
    train.add_argument("--objective", choices=OBJECTIVES, default="rlkv", help="(rlkv)")
    train.add_argument("--problems", metavar="FILE", help="JSON lines with problem and answer (default: ledgers)")
    train.add_argument("--minutes", type=options.not_negative, metavar="X", help="stop after this time")
    for f in fields(Settings):
        if f.name != "objective":
            name = "--" + f.name.replace("_", "-")
            train.add_argument(name, type=_TYPES[str(f.type)], default=f.default, metavar="X", help=f"({f.default})")
    options.add_json(train)
    train.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
    out = options.console(args)
    model, tokenizer, label = options.load_model(args)
    trainer = Trainer(args.folder, model, tokenizer, label, settings, args.problems)
    with options.bar(out) as progress:
        pool = progress.add_task("prompts", total=settings.pool)
        task = progress.add_task("steps", total=settings.steps, completed=trainer.state.step)

        def told(line: Line) -> None:
            progress.update(pool, completed=settings.pool)
            progress.update(task, completed=line.step)
            worth = f"reward {line.reward:.2f}" if settings.objective == "rlkv" else f"loss {line.loss:.4g}"
            progress.console.print(
                f"step {line.step}: {worth}, mean gate {line.mean_gate:.3f}, sparsity {line.sparsity:.2f},"
                f" {line.rollout_seconds + line.update_seconds:.0f} s",
                highlight=False,
            )

        trainer.run(args.minutes, told, lambda n: progress.update(pool, completed=n))
    path = trainer.write()
    plots.gates(trainer.lines, trainer.gates.detach().numpy(), args.folder / "gates.png", settings.objective)
    out.print(f"gates are in {path}", highlight=False)
    options.write_json(args.json, {"gates": str(path), "log": [asdict(x) for x in trainer.lines]})
    return 0
