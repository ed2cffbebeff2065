"""Files that are there whole or not at all, and where downloads and generated texts are kept."""

from __future__ import annotations

import os
from pathlib import Path


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


def cache_folder(name: str) -> Path:
    """$XDG_CACHE_HOME/reasonalloc/NAME, else ~/.cache/reasonalloc/NAME."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "reasonalloc" / name
