"""Reads the prompts in data/prompts/."""

from __future__ import annotations

from importlib.resources import files

from reasonalloc.files import json_lines


def rows(name: str) -> list[dict[str, str]]:
    """The lines of one of its files."""
    return [row for _, row in json_lines(files("reasonalloc") / "data" / "prompts" / f"{name}.jsonl")]
