"""`python -m reasonalloc`: the command without its script."""

import sys

from reasonalloc.cli import main

sys.exit(main())
