"""`python -m reasonalloc.cli`: the command without its script."""

import sys

from reasonalloc.cli import main

sys.exit(main())
