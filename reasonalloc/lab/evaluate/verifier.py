"""math-verify in a process of its own, JSON lines in and out: an answer like 9^{9^{9^9}} never comes back.

Arguments: seconds to start in, bytes of memory. A line in: [number, seconds, gold, answer]; out: [number, whether they
are the same]. The first line out, number 0, says that math-verify works. Imports nothing of this package.
"""

import json
import logging
import resource
import signal
import sys
from math import ceil

_LATER = 2.0  # seconds after its time is up, when the one who asks has ended the process if it lives


def bound(seconds: float) -> None:
    """Ends this process, in whatever it is, after that time by the clock or on the CPU: no handler, no way around."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = ceil(used.ru_utime + used.ru_stime + seconds + _LATER)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu if hard == resource.RLIM_INFINITY else min(cpu, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, seconds + _LATER)


def main() -> None:
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    for number in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    bound(seconds)
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def same(gold: str, answer: str) -> bool:
        parsed = [parse(f"\\boxed{{{x}}}", parsing_timeout=None) for x in (gold, answer)]
        return bool(verify(*parsed, timeout_seconds=None))

    works = same("0.5", "\\frac{1}{2}") and not same("0.5", "2")  # else every answer would be wrong in silence
    print(json.dumps([0, works]), flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for line in sys.stdin:
        number, seconds, gold, answer = json.loads(line)
        bound(seconds)
        try:
            result = same(gold, answer)
        except Exception:  # whatever sympy makes of a model's answer, it is not the right one
            result = False
        print(json.dumps([number, result]), flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
