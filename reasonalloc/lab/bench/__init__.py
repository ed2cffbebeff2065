"""Benchmarks: every result is checked against its reference before anything is timed."""
