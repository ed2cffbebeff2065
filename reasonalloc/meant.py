"""What was probably meant by a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def meant(name: str, known: Iterable[str], show: Callable[[str], str] = repr) -> str:
    """ " (did you mean 'rkv'?)" for an error's text, "" where nothing that exists is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {show(near[0])}?)" if near else ""
