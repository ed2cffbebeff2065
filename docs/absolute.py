"""Makes the relative links of README.md absolute, in place: `python docs/absolute.py REPOSITORY COMMIT`.

PyPI shows README by itself, so a release is built from one whose links lead to the repository (docs/release.md).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, commit: str) -> str:
    """repository: "https://github.com/OWNER/NAME"; its files are at blob/COMMIT, pictures at raw/COMMIT."""

    def lead(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        return f"{picture}{label}({repository.rstrip('/')}/{'raw' if picture else 'blob'}/{commit}/{target})"

    return _LINK.sub(lead, text)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    readme = Path(__file__).parents[1] / "README.md"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), *sys.argv[1:]), encoding="utf-8")
