"""reasonalloc: a key-value cache with a fixed budget for reasoning models.

import reasonalloc as ra

profile = ra.profile(model, tokenizer, prompts)
config = ra.Config(method="reasonalloc", budget=256, profile=profile)
with ra.install(model, config) as session:
    model.generate(**inputs)
    session.last_cache.stats()

Importing it takes no torch and no transformers: what needs them is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING

from reasonalloc import allocate
from reasonalloc.config import Config
from reasonalloc.lazy import late
from reasonalloc.methods import HeadView, Method, methods, register
from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LayerAllocator
from reasonalloc.policy.observers import CutObserver, CutView
from reasonalloc.policy.scorers import Scorer
from reasonalloc.policy.view import LayerView, RowView
from reasonalloc.policy.wave import WaveProfile

if TYPE_CHECKING:
    from reasonalloc import score
    from reasonalloc.hf.cache import ReasonAllocCache
    from reasonalloc.hf.install import Session, install, uninstall
    from reasonalloc.hf.profile import profile
    from reasonalloc.hf.replay import replay
    from reasonalloc.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "Config",
    "CutObserver",
    "CutView",
    "HeadAllocator",
    "HeadView",
    "LayerAllocator",
    "LayerView",
    "Method",
    "ReasonAllocCache",
    "RowView",
    "Scorer",
    "Session",
    "Trace",
    "WaveProfile",
    "__version__",
    "allocate",
    "install",
    "methods",
    "profile",
    "register",
    "replay",
    "score",
    "uninstall",
]

__getattr__ = late(
    __name__,
    {
        "ReasonAllocCache": "reasonalloc.hf.cache",
        "Session": "reasonalloc.hf.install",
        "Trace": "reasonalloc.trace",
        "install": "reasonalloc.hf.install",
        "profile": "reasonalloc.hf.profile",
        "replay": "reasonalloc.hf.replay",
        "score": "reasonalloc.score",
        "uninstall": "reasonalloc.hf.install",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
