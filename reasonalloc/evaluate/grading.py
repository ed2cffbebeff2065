"""Whether a chain's answer is right: the last boxes, compared by math-verify."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

INSTALL = "pip install 'reasonalloc[evaluate]'"


def boxes(text: str) -> list[str]:
    r"""What each \boxed{...} of a text holds, braces within braces included; one that never closes is none."""
    found, start = [], text.find("\\boxed{")
    while start >= 0:
        depth, i = 1, start + len("\\boxed{")
        begin = i
        while i < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if depth:
            break
        found.append(text[begin : i - 1])
        start = text.find("\\boxed{", i)
    return found


def same(answer: str, gold: str) -> bool:
    """Whether two answers mean the same, by math-verify. ModuleNotFoundError, with what helps, where it is missing."""
    if answer.strip() == gold.strip():
        return True
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"grading needs math-verify: {INSTALL}") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parsed: list[Any] = [parse(f"\\boxed{{{x}}}", parsing_timeout=None) for x in (gold, answer)]
    return bool(verify(*parsed, timeout_seconds=None))


def grade(text: str, answers: Sequence[str]) -> tuple[list[str], list[bool]]:
    """(what was answered, whether each is right).

    One answer: the last box counts. Several: box i answers question i; where boxes are missing the rest is wrong.
    """
    given = boxes(text)
    if len(answers) == 1:
        given = given[-1:]
    given = given[: len(answers)]
    right = [same(x, gold) for x, gold in zip(given, answers, strict=False)]
    return given, right + [False] * (len(answers) - len(right))
