"""Methods, one file each; each puts together a scorer, allocators of layers and heads, a schedule and a storage."""

from reasonalloc.methods.base import Method
from reasonalloc.methods.compose import compose, options_of, takes_size
from reasonalloc.methods.table import METHODS, methods, register
from reasonalloc.policy import gathered as _gathered  # noqa: F401  its scorers enter their table
from reasonalloc.policy import profiled as _profiled  # noqa: F401
from reasonalloc.policy import published as _published  # noqa: F401  its parts likewise
from reasonalloc.policy import spans as _spans  # noqa: F401
from reasonalloc.policy import triattention as _triattention  # noqa: F401
from reasonalloc.policy.view import HeadView

# Importing a file enters its method into the table.
from reasonalloc.methods import (  # isort: skip
    adakv,
    adakv_published,
    dkv,
    duo,
    dynamickv,
    full,
    h2o,
    lazyeviction,
    pyramid_rkv,
    pyramidkv,
    pyramidkv_published,
    raas,
    random,
    reasonalloc,
    reasonalloc_route,
    reasonalloc_wave,
    rkv,
    rlkv,
    snapkv,
    snapkv_published,
    spans,
    streaming,
    triattention,
    vase,
    vatp,
)

__all__ = [
    "METHODS",
    "HeadView",
    "Method",
    "adakv",
    "adakv_published",
    "compose",
    "dkv",
    "duo",
    "dynamickv",
    "full",
    "h2o",
    "lazyeviction",
    "methods",
    "options_of",
    "pyramid_rkv",
    "pyramidkv",
    "pyramidkv_published",
    "raas",
    "random",
    "reasonalloc",
    "reasonalloc_route",
    "reasonalloc_wave",
    "register",
    "rkv",
    "rlkv",
    "snapkv",
    "snapkv_published",
    "spans",
    "streaming",
    "takes_size",
    "triattention",
    "vase",
    "vatp",
]
