"""Whether a chain's answer is right: the last boxes, compared by math-verify."""

from __future__ import annotations

import atexit
import json
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

SECONDS, STARTS = 10.0, 120.0  # for one comparison; for the process to come up on a busy machine
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_BOX = "\\boxed{"
_BRACE = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)  # an escaped brace is none
_SENTENCE = re.compile(r"[.!?]\s|\n")
INSTALL = "pip install 'reasonalloc[evaluate]'"


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
    """Whether two answers mean the same, by math-verify; one that takes longer than SECONDS to compare is wrong.

    ModuleNotFoundError, with what helps, where math-verify is missing.
    """
    answer, gold = answer.strip(), gold.strip()
    if answer == gold:
        return True
    if _WHOLE.fullmatch(answer) and _WHOLE.fullmatch(gold):
        return int(answer) == int(gold)
    return _verifier.ask(gold, answer)


class _Verifier:
    """The process that compares, made when first needed and anew after one that did not answer in time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, gold: str, answer: str) -> bool:
        for _ in range(2):  # one that dies may have been killed for what is not the answer's fault
            process = self._started()
            try:
                _there(process.stdin).write(json.dumps([gold, answer]) + "\n")
                _there(process.stdin).flush()
                return bool(self._answer(process, SECONDS))
            except TimeoutError:  # is at it still
                self.stop()
                return False
            except (OSError, ValueError):
                self.stop()
        return False

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        if find_spec("math_verify") is None:
            raise ModuleNotFoundError(f"grading needs math-verify: {INSTALL}")
        path = str(Path(__file__).with_name("verifier.py"))
        self._process = subprocess.Popen(
            [sys.executable, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            works = self._answer(self._process, STARTS)
        except (ValueError, TimeoutError) as error:
            self.stop()
            raise RuntimeError(f"math-verify could not be started by {sys.executable} {path}") from error
        if not works:
            self.stop()
            raise RuntimeError("math-verify does not find 0.5 and \\frac{1}{2} the same: take another version of it")
        return self._process

    def _answer(self, process: subprocess.Popen[str], seconds: float) -> Any:
        ready, _, _ = select.select([_there(process.stdout)], [], [], seconds)
        if not ready:
            raise TimeoutError
        return json.loads(_there(process.stdout).readline())

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):  # what was not written has no reader
                self._process.__exit__(None, None, None)
            self._process = None


def _there(pipe: IO[str] | None) -> IO[str]:
    """A pipe that was asked for is there."""
    if pipe is None:
        raise ValueError("no pipe")
    return pipe


_verifier = _Verifier()
atexit.register(_verifier.stop)


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
