"""`reasonalloc paper` into the folder of the results published here (`make paper`); the options are its own."""

import sys

from reasonalloc.cli import main

sys.exit(main(["paper", "--output", "benchmarks/results/paper", *sys.argv[1:]]))
