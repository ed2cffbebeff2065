"""math-verify in a process of its own, JSON lines in and out: an answer like 9^{9^{9^9}} never comes back."""

import json
import logging
import sys


def main() -> None:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    def same(gold: str, answer: str) -> bool:
        parsed = [parse(f"\\boxed{{{x}}}", parsing_timeout=None) for x in (gold, answer)]
        return bool(verify(*parsed, timeout_seconds=None))

    works = same("0.5", "\\frac{1}{2}") and not same("0.5", "2")  # else every answer would be wrong in silence
    print(json.dumps(works), flush=True)
    for line in sys.stdin:
        try:
            result = same(*json.loads(line))
        except Exception:  # whatever sympy makes of a model's answer, it is not the right one
            result = False
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
