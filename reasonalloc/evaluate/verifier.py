"""math-verify in a process of its own, JSON lines in and out: an answer like 9^{9^{9^9}} never comes back."""

import json
import logging
import sys


def main() -> None:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        try:
            parsed = [parse(f"\\boxed{{{x}}}", parsing_timeout=None) for x in json.loads(line)]
            result = bool(verify(*parsed, timeout_seconds=None))
        except Exception:  # whatever sympy makes of a model's answer, it is not the right one
            result = False
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
