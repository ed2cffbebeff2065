"""Of the site: pages made from the code, and files of the repository that pages link to, which become part of it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import generate

ROOT = generate.ROOT
DOCS = ROOT / "docs"
OUTSIDE = "repository"  # folder of the site that holds what pages link to outside of docs/
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_config(config: Any) -> Any:
    for entry in config.nav:
        if "Systems" in entry:
            entry["Systems"] += [{name: f"systems/{name}.md"} for name in generate.ra.methods()]
    return config


def on_files(files: Files, config: Any) -> Files:
    pages = {"systems/index.md": generate.systems_page()}
    pages |= {f"systems/{name}.md": generate.system_page(name) for name in generate.ra.methods()}
    pages |= {
        "reference/cli.md": generate.cli_page(),
        "reference/config.md": generate.config_page(),
        "reference/stats.md": generate.stats_page(),
        "reference/c.md": generate.header_page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    waiting = [(DOCS / x.src_uri, None) for x in files.documentation_pages()]
    waiting += [(DOCS / name, text) for name, text in pages.items()]
    taken: set[Path] = set()
    while waiting:
        place, text = waiting.pop()
        here = ROOT if place == DOCS / "changelog.md" else place.parent
        for target in _targets(place.read_text(encoding="utf-8") if text is None else text):
            found = Path(os.path.normpath(here / target))
            if found in taken or DOCS in found.parents or not found.is_file() or ROOT not in found.parents:
                continue
            taken.add(found)
            if found.suffix == ".md":
                waiting.append((found, None))
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for found in sorted(taken):
        files.append(File.generated(config, _outside(found), content=found.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links out of docs/ lead into the folder `OUTSIDE`."""
    uri = page.file.src_uri
    if uri.startswith(f"{OUTSIDE}/"):
        origin = (ROOT / uri.removeprefix(f"{OUTSIDE}/")).parent
    else:
        origin = ROOT if uri == "changelog.md" else (DOCS / uri).parent
    start = (DOCS / uri).parent

    def lead(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups()
        found = Path(os.path.normpath(origin / target))
        if "://" in target or not found.is_file() or (DOCS in found.parents and origin == start):
            return match[0]
        place = found if DOCS in found.parents else DOCS / _outside(found)
        return f"{before}{os.path.relpath(place, start)}{anchor or ''}{after}"

    return _LINK.sub(lead, markdown)


def _targets(text: str) -> list[str]:
    return [x[2] for x in _LINK.finditer(text) if "://" not in x[2]]


def _outside(path: Path) -> str:
    return f"{OUTSIDE}/{path.relative_to(ROOT).as_posix()}"
