"""Methods, one file each; each puts together a scorer, allocators of layers and heads, a schedule and a storage."""

from reasonalloc.methods.base import Method
from reasonalloc.methods.compose import compose
from reasonalloc.methods.table import METHODS, methods, register
from reasonalloc.policy import gathered as _gathered  # noqa: F401  its scorers enter their table
from reasonalloc.policy import triattention as _triattention  # noqa: F401
from reasonalloc.policy.view import HeadView

# Importing a file enters its method into the table.
from reasonalloc.methods import (  # isort: skip
    adakv,
    duo,
    dynamickv,
    full,
    h2o,
    lazyeviction,
    pyramid_rkv,
    pyramidkv,
    raas,
    random,
    reasonalloc,
    reasonalloc_route,
    reasonalloc_wave,
    rkv,
    rlkv,
    snapkv,
    streaming,
    triattention,
)

__all__ = [
    "METHODS",
    "HeadView",
    "Method",
    "adakv",
    "compose",
    "duo",
    "dynamickv",
    "full",
    "h2o",
    "lazyeviction",
    "methods",
    "pyramid_rkv",
    "pyramidkv",
    "raas",
    "random",
    "reasonalloc",
    "reasonalloc_route",
    "reasonalloc_wave",
    "register",
    "rkv",
    "rlkv",
    "snapkv",
    "streaming",
    "triattention",
]
