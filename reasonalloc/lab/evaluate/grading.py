"""Whether a chain's answers are right: which of its boxes count, compared by math-verify."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Grades:
    """Of one chain, each [answers asked].

    answers: what was answered, by the rule that counts; right: whether it is. by_rule: the same by the other rules.
    again: answers that were boxed more than once.
    """

    answers: list[str]
    right: list[bool]
    by_rule: dict[str, list[bool]]
    again: int


def grade(text: str, answers: Sequence[str], asked: Sequence[str] = ()) -> Grades:
    """Grades a chain by each rule for boxes; the first of these counts.

    One answer: "last" box, the field's convention; "first".
    Several, with `asked` saying whose: a box is of the one named last before it in its sentence, and of several for one
    the "first" counts, since a chain that has answered all and runs on starts anew; "last"; "order": box i answers
    question i. Boxes without a name are of those that no box names, in order.
    Several without: "order". Where boxes are missing the answer is wrong.
    """
    given = _candidates(text, answers, asked)
    rules: dict[str, Callable[[list[str]], str]] = {"first": lambda x: x[0], "last": lambda x: x[-1]}
    if len(answers) > 1:
        rules = rules if asked else {"order": lambda x: x[0]}
    else:
        rules = dict(reversed(rules.items()))
    chosen = {rule: [pick(x) if x else "" for x in given] for rule, pick in rules.items()}
    if asked and len(answers) > 1:
        found = boxes(text)[: len(answers)]
        chosen["order"] = found + [""] * (len(answers) - len(found))
    verdicts: dict[tuple[str, str], bool] = {}

    def right(answer: str, gold: str) -> bool:
        if (answer, gold) not in verdicts:
            verdicts[answer, gold] = answer != "" and same(answer, gold)
        return verdicts[answer, gold]

    graded = {rule: [right(x, gold) for x, gold in zip(own, answers, strict=True)] for rule, own in chosen.items()}
    first = next(iter(chosen))
    others = {rule: own for rule, own in graded.items() if rule != first}
    return Grades(chosen[first], graded[first], others, sum(len(x) > 1 for x in given))


def _candidates(text: str, answers: Sequence[str], asked: Sequence[str]) -> list[list[str]]:
    """The boxes of each answer, as they come."""
    if len(answers) == 1:
        return [boxes(text)]
    if asked:
        return _by_name(text, asked)
    found = boxes(text)
    return [found[i : i + 1] for i in range(len(answers))]


def _by_name(text: str, asked: Sequence[str]) -> list[list[str]]:
    """The boxes of each one asked for."""
    names = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, asked)) + r")(?!\w)")
    named: dict[str, list[str]] = {}
    others: list[str] = []
    start = 0
    for begin, end in _inside(text):
        sentence = _SENTENCE.split(text[start:begin])[-1]
        found = names.findall(sentence)
        if found:
            named.setdefault(found[-1], []).append(text[begin:end])
        else:
            others.append(text[begin:end])
        start = end
    rest = iter(others)
    return [named[x] if x in named else [box for box in [next(rest, "")] if box] for x in asked]
