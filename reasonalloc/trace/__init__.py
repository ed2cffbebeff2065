"""Traces: every cut of a cache on record, in a compact file, drawn in a page, and forced again on the same text."""

from reasonalloc.trace.file import QUANTILES, SCHEMA, Trace

__all__ = ["QUANTILES", "SCHEMA", "Trace"]
