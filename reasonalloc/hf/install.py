"""Switching a model over for a while: `with ra.install(model, config)`."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from reasonalloc.config import Config
from reasonalloc.hf.attention import activate, deactivate, is_active
from reasonalloc.hf.cache import ReasonAllocCache


class Session:
    """Inside its block every `model.generate` call without a cache of its own gets a fresh ReasonAllocCache.

    last_cache: the cache of the newest generate call, None before the first.
    """

    def __init__(self, model: Any, config: Config, record: bool = False) -> None:
        if "generate" in vars(model):
            raise ValueError("the model has a session already, or its generate was replaced; leave that one first")
        self.model, self.config = model, config
        self.last_cache: ReasonAllocCache | None = None
        was_active = is_active(model)
        ReasonAllocCache(model, config)  # a config that does not fit fails here, not in the first generate
        self._deactivate = not was_active
        plain = model.generate

        def generate(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("past_key_values") is None and kwargs.get("use_cache") is not False:
                self.last_cache = ReasonAllocCache(model, config, record=record)
                kwargs["past_key_values"] = self.last_cache
            return plain(*args, **kwargs)

        model.generate = generate
        self._closed = False

    def close(self) -> None:
        """Undoes the installation; harmless when called twice."""
        if self._closed:
            return
        self._closed = True
        vars(self.model).pop("generate", None)
        if self._deactivate:
            deactivate(self.model)

    def __enter__(self) -> Session:
        if self._closed:
            raise RuntimeError("the session is closed; install the model again")
        activate(self.model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def install(model: Any, config: Config, *, record: bool = False) -> Session:
    """Gives every generate() of a model a fresh cache by `config`; undone when the block ends, errors included.

    Without `with`, call `.close()` of the session, or `ra.uninstall(model)`. record: as of `ReasonAllocCache`, so that
    `session.last_cache.trace(...)` can be had.
    """
    return Session(model, config, record)


def uninstall(model: Any) -> None:
    """Undoes what `install` or `ReasonAllocCache` did to a model: its generate and its attention are its own again."""
    vars(model).pop("generate", None)
    deactivate(model)
