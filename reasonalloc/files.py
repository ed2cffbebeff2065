"""Files that are written whole or not at all, saved results, and where downloads and generated texts are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def replace_text(path: Path, text: str) -> None:
    """Writes UTF-8 text by way of a file beside it, which is this process's own, on disk when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_saved(path: str | Path, name: str, schema: int) -> dict[str, Any]:
    """A JSON object that says of which schema it is. name: what it should be; ValueError if it is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # neither text nor JSON
        raise ValueError(f"{path} is not a {name}: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != schema:
        got = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path} is not a {name} of schema {schema}, got {got!r}")
    return data


def cache_folder(name: str) -> Path:
    """$XDG_CACHE_HOME/reasonalloc/NAME, else ~/.cache/reasonalloc/NAME."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "reasonalloc" / name
