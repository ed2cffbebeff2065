"""Scores that models are known to have with a full cache: what the gate of an evaluation compares with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from reasonalloc.fields import build
from reasonalloc.files import read_json
from reasonalloc.lab.models import REASONERS, adapter_folder, bare
from reasonalloc.lab.ungrouped import split

# pass@1 at temperature 0.6, top-p 0.95, 32,768 tokens: DeepSeek-R1's model cards (arXiv 2501.12948, table 5).
_PUBLISHED = {
    "DeepSeek-R1-Distill-Qwen-1.5B": {"aime24": 0.289, "math500": 0.839},
    "DeepSeek-R1-Distill-Qwen-7B": {"aime24": 0.555, "math500": 0.928},
    "DeepSeek-R1-Distill-Qwen-14B": {"aime24": 0.697, "math500": 0.939},
    "DeepSeek-R1-Distill-Qwen-32B": {"aime24": 0.726, "math500": 0.943},
    "DeepSeek-R1-Distill-Llama-8B": {"aime24": 0.504, "math500": 0.891},
    "DeepSeek-R1-Distill-Llama-70B": {"aime24": 0.700, "math500": 0.945},
}


@dataclass(frozen=True)
class _Measured:
    """What training/scores.py wrote: accuracy by group of the task."""

    accuracy: dict[str, float]


def scores(model: str | None, task: str, groups: Collection[str]) -> dict[str, float] | None:
    """Known accuracy by group of the task ("" for all of it); None where nothing is known."""
    name = split(model)[0]
    if name is not None and name == REASONERS.get(task):
        folder = adapter_folder(name)
        path = None if folder is None else folder / "scores.json"
        if path is None or not path.is_file():
            return None
        found = build(_Measured, read_json(path, "list of measured scores"), str(path), others=True)
        return {k: v for k, v in found.accuracy.items() if k in groups} or None
    published = _PUBLISHED.get(bare(model), {})
    return {"": published[task]} if task in published else None
