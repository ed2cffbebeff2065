"""reasonalloc: a key-value cache with a fixed budget for reasoning models.

import reasonalloc as ra

profile = ra.profile(model, tokenizer, prompts)
config = ra.Config(method="reasonalloc", budget=256, profile=profile)
with ra.install(model, config) as session:
    model.generate(**inputs)
    session.last_cache.stats()
"""

from reasonalloc import allocate, score
from reasonalloc.config import Config
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.install import Session, install, uninstall
from reasonalloc.hf.profile import profile
from reasonalloc.hf.replay import replay
from reasonalloc.methods import HeadView, Method, methods, register
from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LayerAllocator
from reasonalloc.policy.observers import CutObserver, CutView
from reasonalloc.policy.scorers import Scorer
from reasonalloc.policy.view import LayerView, RowView
from reasonalloc.policy.wave import WaveProfile
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
