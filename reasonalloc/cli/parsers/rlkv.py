"""Options of `reasonalloc rlkv train`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from reasonalloc.cli import options
from reasonalloc.lab.rlkv.settings import OBJECTIVES, Settings

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
    train.set_defaults(run=options.late("rlkv"))
