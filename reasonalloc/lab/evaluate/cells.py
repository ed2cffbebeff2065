"""Cells: what an evaluation varies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from reasonalloc.config import Config
from reasonalloc.fingerprint import digest


@dataclass(frozen=True)
class Cell:
    """One setting of the cache that is judged; a row of the table."""

    name: str
    config: Config

    @property
    def label(self) -> str:
        """The name without the size: a method's, or a study file's word."""
        return self.name.split(maxsplit=1)[0]

    @property
    def hash(self) -> str:
        """Of all that the config says and of the parts that its method stands for; the profile by its content."""
        config, method = self.config, self.config.resolve()
        content: dict[str, object] = config.settings() | {"profile": None, "parts": asdict(method)}
        content["options"] = {name: _content(value) for name, value in config.options.items()}
        if config.measured is not None:
            content["calibration"] = config.measured.digest
        del content["device"]  # where a cache lies changes no result
        if not config.recall:  # and what was not there when chains were kept
            content = {key: x for key, x in content.items() if key not in ("recall", "cold_slots", "cold_format")}
        if config.profile is not None and method.needs_wave:
            content["profile"] = [float(x) for x in config.profile.demand]
        return digest(content)


def once(cells: Iterable[Cell]) -> list[Cell]:
    """Each cell once, in their order."""
    found: list[Cell] = []
    for cell in cells:
        if cell not in found:
            found.append(cell)
    return found


def _content(value: object) -> object:
    """Of an option: where it is a file, what is in it."""
    if not isinstance(value, (str, Path)) or not Path(value).is_file():
        return value
    return hashlib.sha256(Path(value).read_bytes()).hexdigest()


def cell_name(config: Config) -> str:
    """ "rkv 256", "rkv 0.1x" or "full"."""
    size = str(config.budget) if config.budget is not None else f"{config.ratio:g}x" if config.ratio is not None else ""
    return f"{config.method} {size}".strip() + (" recall" if config.recall else "")
