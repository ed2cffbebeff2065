"""Pages of memory over the C core."""
