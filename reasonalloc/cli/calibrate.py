"""`reasonalloc calibrate`: measures what methods need to know of a model beforehand."""

from __future__ import annotations

import argparse

from reasonalloc.cli import options
from reasonalloc.files import read_text
from reasonalloc.hf import calibrate as measuring
from reasonalloc.hf.published import import_triattention
from reasonalloc.lab.problems import math500
from reasonalloc.policy.calibration import parts_of


def run(args: argparse.Namespace) -> int:
    parts_of(args.wanted)
    texts = [] if args.published else _texts(args.texts)
    out = options.console(args)
    model, tokenizer, label = options.load_model(args)
    if args.published:
        calibration = import_triattention(model, args.published)
    else:
        calibration = measuring.calibrate(
            model,
            tokenizer,
            texts,
            for_=args.wanted,
            length=args.length,
            chunk=args.chunk,
            slots=args.slots,
            progress=out.is_terminal,
        )
    calibration.save(args.output)
    summary = f"{', '.join(calibration.holds)} of {len(calibration.layers)} layers of {label}"
    out.print(f"{summary}, saved to {args.output}", highlight=False)
    options.write_json(
        args.json,
        {"holds": calibration.holds, "layers": list(calibration.layers), "source": dict(calibration.source)},
    )
    return 0


def _texts(names: list[str]) -> list[str]:
    if len(names) == 1 and names[0].isdecimal():
        if int(names[0]) < 1:
            raise ValueError(f"--texts must be files or a number of problems from 1 on, got {names[0]}")
        return [x.problem for x in math500(int(names[0]))]
    return [read_text(name) for name in names]
