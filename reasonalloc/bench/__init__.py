"""Benchmarks: every result is checked against its reference before anything is timed."""

from reasonalloc.bench.run import add_arguments, main

__all__ = ["add_arguments", "main"]
