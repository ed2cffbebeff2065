"""`python -m reasonalloc.integrations.lm_eval ...`: lm_eval's own command, with the model registered."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from reasonalloc.files import visible
from reasonalloc.integrations.lm_eval.arguments import INSTALL, ArgumentError


def main() -> int:
    """Runs lm_eval on sys.argv. Returns 0, or 2 for model arguments that cannot be used."""
    if find_spec("lm_eval") is None:
        print(f"reasonalloc: lm-evaluation-harness is not installed: {INSTALL}", file=sys.stderr)
        return 2
    from lm_eval.__main__ import cli_evaluate

    import reasonalloc.integrations.lm_eval.model  # noqa: F401  registers

    try:
        cli_evaluate()
    except ArgumentError as error:
        print(f"reasonalloc: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
