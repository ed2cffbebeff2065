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
from reasonalloc.policy.calibration import Calibration
from reasonalloc.policy.heads import HeadAllocator
from reasonalloc.policy.layers import LayerAllocator
from reasonalloc.policy.observers import CutObserver, CutView
from reasonalloc.policy.scorers import Scorer
from reasonalloc.policy.view import LayerView, RowView
from reasonalloc.policy.wave import WaveProfile

if TYPE_CHECKING:
    from reasonalloc import score
    from reasonalloc.hf.cache import ReasonAllocCache
    from reasonalloc.hf.calibrate import calibrate
    from reasonalloc.hf.install import Session, install, uninstall
    from reasonalloc.hf.profile import profile
    from reasonalloc.hf.published import import_triattention
    from reasonalloc.hf.replay import replay
    from reasonalloc.hf.stats import CacheStats
    from reasonalloc.hf.supports import Support, supports
    from reasonalloc.lab.evaluate.ablations import ablations
    from reasonalloc.lab.evaluate.given import Results, evaluate, load
    from reasonalloc.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "CacheStats",
    "Calibration",
    "Config",
    "CutObserver",
    "CutView",
    "HeadAllocator",
    "HeadView",
    "LayerAllocator",
    "LayerView",
    "Method",
    "ReasonAllocCache",
    "Results",
    "RowView",
    "Scorer",
    "Session",
    "Support",
    "Trace",
    "WaveProfile",
    "__version__",
    "ablations",
    "allocate",
    "calibrate",
    "evaluate",
    "import_triattention",
    "install",
    "load",
    "methods",
    "profile",
    "register",
    "replay",
    "score",
    "supports",
    "uninstall",
]

__getattr__ = late(
    __name__,
    {
        "CacheStats": "reasonalloc.hf.stats",
        "ReasonAllocCache": "reasonalloc.hf.cache",
        "Results": "reasonalloc.lab.evaluate.given",
        "Session": "reasonalloc.hf.install",
        "Support": "reasonalloc.hf.supports",
        "Trace": "reasonalloc.trace",
        "ablations": "reasonalloc.lab.evaluate.ablations",
        "calibrate": "reasonalloc.hf.calibrate",
        "evaluate": "reasonalloc.lab.evaluate.given",
        "import_triattention": "reasonalloc.hf.published",
        "install": "reasonalloc.hf.install",
        "load": "reasonalloc.lab.evaluate.given",
        "profile": "reasonalloc.hf.profile",
        "replay": "reasonalloc.hf.replay",
        "score": "reasonalloc.score",
        "supports": "reasonalloc.hf.supports",
        "uninstall": "reasonalloc.hf.install",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
