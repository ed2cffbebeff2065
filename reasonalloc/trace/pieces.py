"""The text of each token."""

from __future__ import annotations

from collections.abc import Sequence

from reasonalloc.protocols import Tokenizer

_HALF = "\ufffd"  # what a tokenizer gives for a part of a character


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """One text for each token; joined they are the text.

    A character that several tokens share belongs to the last of them, the ones before it have none. Each token is
    decoded behind the few before it, since tokenizers treat the beginning of a text in their own way.
    """

    def decode(begin: int, end: int) -> str:
        return str(tokenizer.decode(list(ids[begin:end]), skip_special_tokens=False))

    result = []
    start = done = 0  # tokens start..done give the text before the next piece
    for i in range(len(ids)):
        before, now = decode(start, done), decode(start, i + 1)
        if now.endswith(_HALF) and i + 1 < len(ids) and i - done < 8:
            result.append("")
            continue
        result.append(now[len(before) :])
        start, done = done, i + 1
    return result
