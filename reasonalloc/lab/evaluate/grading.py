"""Whether a chain's answer is right: the last boxes, compared by math-verify."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reasonalloc.lab.evaluate.verifier_client import ask

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_BOX = "\\boxed{"
_BRACE = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)  # an escaped brace is none
_SENTENCE = re.compile(r"[.!?]\s|\n")


def boxes(text: str) -> list[str]:
    r"""What each \boxed{...} of a text holds, braces within braces included; one that never closes is none."""
    return [text[begin:end] for begin, end in _inside(text)]


def _inside(text: str) -> list[tuple[int, int]]:
    """Where what the boxes hold begins and ends; of boxes within a box the outer one."""
    closed: list[tuple[int, int]] = []
    open_at: list[int] = []  # of every brace that is open, where what it holds begins if it is a box's, else -1
    for found in _BRACE.finditer(text):
        if found.group() == "}":
            begin = open_at.pop() if open_at else -1
            if begin >= 0:
                closed.append((begin, found.start()))
        elif found.group() in (_BOX, "{"):
            open_at.append(found.end() if found.group() == _BOX else -1)
    outer: list[tuple[int, int]] = []
    for begin, end in sorted(closed):
        if not outer or begin > outer[-1][1]:
            outer.append((begin, end))
    return outer


def same(answer: str, gold: str) -> bool:
    """Whether two answers mean the same, by math-verify; one that takes longer than its SECONDS to compare is wrong.

    ModuleNotFoundError, with what helps, where math-verify is missing.
    """
    answer, gold = answer.strip(), gold.strip()
    if answer == gold:
        return True
    if _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(gold):
        return int(answer) == int(gold)
    return ask(gold, answer)


def grade(text: str, answers: Sequence[str], asked: Sequence[str] = ()) -> tuple[list[str], list[bool]]:
    """(what was answered, whether each is right).

    One answer: the last box counts. Several: box i answers question i; where boxes are missing the rest is wrong. If
    asked says whose answers they are, a box is of the one named last before it in its sentence, and of several for one
    the last counts; boxes without a name are of those that no box names, in order.
    """
    if len(answers) == 1:
        given = boxes(text)[-1:]
    elif asked:
        given = _by_name(text, asked)
    else:
        given = boxes(text)[: len(answers)]
    right = [x != "" and same(x, gold) for x, gold in zip(given, answers, strict=False)]
    return given, right + [False] * (len(answers) - len(right))


def _by_name(text: str, asked: Sequence[str]) -> list[str]:
    """The box of each one asked for, "" where there is none."""
    names = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, asked)) + r")(?!\w)")
    named: dict[str, str] = {}
    others: list[str] = []
    start = 0
    for begin, end in _inside(text):
        sentence = _SENTENCE.split(text[start:begin])[-1]
        found = names.findall(sentence)
        if found:
            named[found[-1]] = text[begin:end]
        else:
            others.append(text[begin:end])
        start = end
    rest = iter(others)
    return [named[x] if x in named else next(rest, "") for x in asked]
