"""Whether a model can have a cache with a budget, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from reasonalloc.config import Config
from reasonalloc.hf.architectures import ARCHITECTURES
from reasonalloc.hf.attention import deactivate, is_active
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.check import compare
from reasonalloc.hf.compat import unwrapped
from reasonalloc.protocols import Model

State = Literal["supported", "limited", "refused", "unknown"]


@dataclass(frozen=True)
class Support:
    """What is known of a model; true where it can have a cache with a budget.

    state: supported, limited (it works, with a note), refused, or unknown (nobody has tried). reasons: sentences.
    checked: whether its logits were compared.
    """

    model_type: str
    state: State
    reasons: tuple[str, ...]
    checked: bool = False

    def __bool__(self) -> bool:
        return self.state in ("supported", "limited")

    def __str__(self) -> str:
        return f"{self.model_type}: {self.state}{''.join(f'; {x}' for x in self.reasons)}"


def supports(model: Model | PreTrainedConfig | str, *, check: bool = False) -> Support:
    """Whether a model can have a cache with a budget, with reasons.

    model: a transformers model, a config, or a name of the Hub or a folder, whose config alone is then read. check: run
    the model on random tokens and compare its logits, and those of a left-padded row, with transformers' own cache
    (`reasonalloc doctor --model` does the same); needs a model. Nothing of the model is changed.
    """
    loaded = None if isinstance(model, str | PreTrainedConfig) else unwrapped(model)
    if check and loaded is None:
        raise ValueError("check=True runs the model: give the model itself, not its name or config")
    if isinstance(model, str):
        model = AutoConfig.from_pretrained(model)
    config: Any = model if loaded is None else loaded.config
    kind = config.get_text_config(decoder=True).model_type
    known = ARCHITECTURES.get(kind, ARCHITECTURES.get(config.model_type))
    if known is not None and known.state == "refused":
        return Support(kind, "refused", (known.note,))
    problem = _refused(loaded) if loaded is not None else None
    if problem is not None:
        return Support(kind, "refused", (problem,))
    found = compare(loaded) if check and loaded is not None else None
    if found is not None and found.problem:
        return Support(kind, "refused", (found.problem,), True)
    notes: tuple[str, ...] = (known.note,) if known is not None and known.note else ()
    if found is not None:
        notes += (f"logits within {found.logits:.1g} of their spread of those with transformers' cache",)
        return Support(kind, "limited" if known is not None and known.note else "supported", notes, True)
    if known is None:
        return Support(kind, "unknown", ("this model_type was not tried: ra.supports(model, check=True) tries it",))
    return Support(kind, known.state, notes)


def _refused(model: Model) -> str | None:
    """What making a cache raises; the model's attention is as before then."""
    was_active = is_active(model)
    try:
        ReasonAllocCache(model, Config(method="full"))
    except (ValueError, TypeError, NotImplementedError) as error:
        return " ".join(str(error).split())
    finally:
        if not was_active:
            deactivate(model)
    return None
