"""The process that compares answers: started when first needed, asked by one thread at a time, ended when in doubt."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

SECONDS, STARTS = 10.0, 120.0  # for one comparison; for the process to come up on a busy machine
MEMORY = 4 << 30  # bytes of address space that it may take
INSTALL = "pip install '.[evaluate]' in a checkout of reasonalloc"
_TRIES = 2  # one that dies may have been killed for what is not the answer's fault


class Verifier:
    """Questions and replies carry a number, so that no reply is taken for another question's. Whatever interrupts the
    wait for a reply, an exception of the caller's included, ends the process: the next question starts a fresh one.
    Threads wait for each other; a forked child starts a process of its own. The process bounds itself too (`verifier`):
    it is given SECONDS and MEMORY, so it does not compute on when this one is killed.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self._lock = threading.Lock()

    def ask(self, gold: str, answer: str) -> bool:
        """Whether they mean the same; False where the comparison takes too long, too much memory, or fails twice."""
        with self._lock:
            for _ in range(_TRIES):
                process = self._started()
                self._number += 1
                question = json.dumps([self._number, SECONDS, gold, answer]) + "\n"
                try:
                    return bool(self._reply(process, question, self._number, SECONDS))
                except TimeoutError:  # is at it still
                    return False
                except (OSError, ValueError):  # died, or said what is no reply
                    continue
            return False

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        if find_spec("math_verify") is None:
            raise ModuleNotFoundError(f"grading needs math-verify: {INSTALL}")
        path = str(Path(__file__).with_name("verifier.py"))
        self._process = subprocess.Popen(
            [sys.executable, path, str(STARTS), str(MEMORY)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip
        try:
            works = self._reply(self._process, "", 0, STARTS)
        except (OSError, ValueError, TimeoutError) as error:
            raise RuntimeError(f"math-verify could not be started by {sys.executable} {path}") from error
        if not works:
            self._end()
            raise RuntimeError("math-verify does not find 0.5 and \\frac{1}{2} the same: take another version of it")
        return self._process

    def _reply(self, process: subprocess.Popen[bytes], question: str, number: int, seconds: float) -> object:
        """The reply to a question; ends the process, whatever is raised while waiting for it."""
        try:
            _write(_pipe(process.stdin), question.encode())
            got, reply = json.loads(_line(_pipe(process.stdout), seconds))
            if got != number:
                raise ValueError(f"a reply to question {got}, asked was {number}")
            return reply
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """Ends the process; the next question starts another."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError):  # what was not written has no reader
                process.__exit__(None, None, None)

    def after_fork(self) -> None:
        """In the child: the process, and a lock that another thread may have taken, are the parent's."""
        process, self._process, self._lock = self._process, None, threading.Lock()
        if process is not None:
            process.returncode = 0  # not this process's child: nothing to wait for
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("no pipe")
    return pipe


def _write(pipe: IO[bytes], data: bytes) -> None:
    while data:  # a signal may end a write early
        data = data[os.write(pipe.fileno(), data) :]


def _line(pipe: IO[bytes], seconds: float) -> bytes:
    """The next line of an unbuffered pipe; TimeoutError, or ValueError where it ends."""
    poll, line = select.poll(), b""  # select.select knows no file numbers above 1023
    poll.register(pipe, select.POLLIN)
    while not line.endswith(b"\n"):
        if not poll.poll(seconds * 1000):
            raise TimeoutError
        part = os.read(pipe.fileno(), 1 << 16)
        if not part:
            raise ValueError("the pipe ended")
        line += part
    return line


_verifier = Verifier()
atexit.register(_verifier.stop)
os.register_at_fork(after_in_child=_verifier.after_fork)


def ask(gold: str, answer: str) -> bool:
    """`Verifier.ask` of the process that all callers share."""
    return _verifier.ask(gold, answer)
