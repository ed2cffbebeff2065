"""Methods, one file each; each composes a scorer, a layer allocator, a head allocator and a schedule."""

from reasonalloc.methods.base import HeadView, Method
from reasonalloc.methods.table import methods, register, resolve

# Importing a file enters its method into the table.
from reasonalloc.methods import (  # isort: skip
    adakv,
    full,
    pyramid_rkv,
    pyramidkv,
    random,
    reasonalloc,
    reasonalloc_route,
    reasonalloc_wave,
    rkv,
    snapkv,
    streaming,
)

__all__ = [
    "HeadView",
    "Method",
    "adakv",
    "full",
    "methods",
    "pyramid_rkv",
    "pyramidkv",
    "random",
    "reasonalloc",
    "reasonalloc_route",
    "reasonalloc_wave",
    "register",
    "resolve",
    "rkv",
    "snapkv",
    "streaming",
]
