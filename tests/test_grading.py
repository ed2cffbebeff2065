"""The process that compares answers: never another question's reply, never longer or larger than allowed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reasonalloc.lab.evaluate import verifier, verifier_client
from reasonalloc.lab.evaluate.grading import grade
from reasonalloc.lab.evaluate.verifier_client import Verifier

pytest.importorskip("math_verify")

RIGHT, WRONG = ("0.5", r"\frac{1}{2}"), ("0.5", r"\frac{1}{3}")
ENDLESS = r"9^{9^{9^{9}}}"


@pytest.fixture
def own():
    subject = Verifier()
    yield subject
    subject.stop()


def test_threads_get_their_own_replies(own):
    asked = [RIGHT if i % 3 else WRONG for i in range(90)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda x: own.ask(*x), asked)) == [x is RIGHT for x in asked]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [0.0005, 0.001, 0.002, 0.005])
def test_an_interrupted_question_leaves_no_reply_behind(own, after):
    """An alarm while waiting, as a timeout of the caller's: the next question gets its own reply."""
    assert own.ask(*RIGHT)

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(3):
            try:
                signal.setitimer(signal.ITIMER_REAL, after * (i + 1))
                own.ask("0.25", r"\frac{2}{8}")
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                pass
            assert [own.ask(*x) for x in (WRONG, RIGHT, WRONG)] == [False, True, False]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_reply_with_another_number_is_none(own):
    script = "import sys\nfor line in sys.stdin: print('[7, true]', flush=True)"
    own._process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert not own.ask(*WRONG) and own.ask(*RIGHT)  # by a fresh process


def test_a_forked_child_asks_a_process_of_its_own():
    assert verifier_client.ask(*RIGHT)
    parents = verifier_client._verifier._process.pid
    read, write = os.pipe()
    child = os.fork()
    if not child:  # exits without the test's own end
        got = [verifier_client._verifier._process is None]
        got += [verifier_client.ask(*WRONG), verifier_client.ask(*RIGHT)]
        own = verifier_client._verifier._process.pid
        verifier_client._verifier.stop()
        os.write(write, json.dumps([*got, own]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        empty, wrong, right, own = json.loads(file.read())
    os.waitpid(child, 0)
    assert (empty, wrong, right) == (True, False, True) and own != parents
    assert verifier_client._verifier._process.pid == parents
    assert verifier_client._verifier._process.poll() is None and verifier_client.ask(*RIGHT)


def test_many_open_files(own):
    """select.select cannot watch a file number above 1023, and every answer was wrong then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip("too few open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
    opened = []
    try:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1050)]
        assert own.ask(*RIGHT)
    finally:
        for number in opened:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def worker(**limits):
    """(process, its first line) of a verifier that nobody stops."""
    process = subprocess.Popen(
        [sys.executable, verifier.__file__, "120", str(limits.get("memory", 4 << 30))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, json.loads(process.stdout.readline())


def test_it_ends_by_itself_when_the_run_that_asked_is_gone(tmp_path):
    """The parent is killed while the question is computed; the process has no one to stop it."""
    script = tmp_path / "run.py"
    script.write_text(
        "import subprocess, sys, time, json\n"
        f"p = subprocess.Popen([sys.executable, {verifier.__file__!r}, '120', str(4 << 30)], stdin=-1, stdout=-1)\n"
        "p.stdout.readline()\n"
        f"p.stdin.write((json.dumps([1, 1.0, '8', {ENDLESS!r}]) + '\\n').encode()); p.stdin.flush()\n"
        "print(p.pid, flush=True)\ntime.sleep(100)\n"
    )
    run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pid = int(run.stdout.readline())
    run.kill()
    run.wait()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.1)
    assert not alive(pid)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_cpu_is_bounded_too():
    process, first = worker()
    assert first == [0, True]
    process.stdin.write(json.dumps([1, 1.0, "8", ENDLESS]) + "\n")
    process.stdin.flush()
    time.sleep(0.5)
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    seconds = next(x for x in limits.splitlines() if x.startswith("Max cpu time")).split()[3]
    assert 3 <= int(seconds) <= 30  # what starting took, and 1 + 2
    assert process.wait(timeout=30) in (-signal.SIGALRM, -signal.SIGXCPU)


def test_memory_is_bounded_and_the_answer_that_needs_more_is_wrong():
    process, first = worker(memory=1 << 30)
    assert first == [0, True]
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert f"{1 << 30}" in next(x for x in limits.splitlines() if x.startswith("Max address space"))
    for number, (gold, answer) in enumerate([("8", "2^{3}"), ("8", "2^{99999999999}"), ("8", "2^{3}")], 1):
        process.stdin.write(json.dumps([number, 20.0, gold, answer]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:  # killed by its limit: as good
            break
        assert json.loads(line) == [number, number != 2]
    process.stdin.close()
    process.wait(timeout=30)


def test_an_answer_that_never_ends_is_wrong(monkeypatch):
    monkeypatch.setattr(verifier_client, "SECONDS", 1.0)
    slow = grade(r"\boxed{9^{9^{9^{9}}}}", ["8"])
    assert (slow.answers, slow.right) == (["9^{9^{9^{9}}}"], [False])
    assert grade(r"\boxed{0.5}", [r"\frac{1}{2}"]).right == [True]  # by the next process


def test_a_verifier_that_dies_is_asked_again():
    verifier, pipes = verifier_client.Verifier(), {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    verifier._process = subprocess.Popen([sys.executable, "-c", "input()"], **pipes)  # dies when asked
    assert verifier.ask("0.5", r"\frac{1}{2}") and not verifier.ask("0.5", "2")
    verifier.stop()


def test_a_math_verify_that_cannot_compare_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("parse = lambda x, **_: x\nverify = lambda *_, **__: True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="another version"):
        verifier_client.Verifier().ask("0.5", "x")
