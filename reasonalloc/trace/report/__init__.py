"""One self-contained page that shows traces."""

from reasonalloc.trace.report.page import page
from reasonalloc.trace.report.summary import summary

__all__ = ["page", "summary"]
