"""Switching a model over for a while: `with ra.install(model, config)`."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType, TracebackType
from typing import Any, ClassVar

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from reasonalloc.config import Config, check_config
from reasonalloc.hf.attention import activate, deactivate, is_active
from reasonalloc.hf.cache import ReasonAllocCache
from reasonalloc.hf.compat import (
    cache_argument,
    generates_in_parts,
    generation_setting,
    given_cache,
    unwrapped,
    without_cache,
)
from reasonalloc.hf.stats import CacheStats
from reasonalloc.protocols import Model


class _StandIn:
    """Stands in for a method of a model during a session.

    A copy of the model, or one that was pickled, gets the plain method of its class: it is in no session.
    """

    name: ClassVar[str]

    def __init__(self, session: Session) -> None:
        self.session, self.plain = session, getattr(session.model, self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        twin = memo[id(self.session.model)]
        return MethodType(getattr(type(twin), self.name), twin)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, str]]:
        return getattr, (self.session.model, self.name)  # of a model whose own attributes are not read yet


class _Generate(_StandIn):
    name = "generate"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self.session.model
        chosen = given_cache(kwargs) is not None or generation_setting(model, args, kwargs, "cache_implementation")
        # generate caches with embeddings whatever its settings say
        unused = generation_setting(model, args, kwargs, "use_cache") is False and kwargs.get("inputs_embeds") is None
        if not chosen and not unused and not self.session.is_drafting:
            chunks = generation_setting(model, args, kwargs, "prefill_chunk_size") is not None
            known = None if model.config.is_encoder_decoder else _columns(args, kwargs)
            with self.session.serving(known if chunks else 0) as cache:
                return self.plain(*args, **without_cache(kwargs) | cache_argument(cache))
        return self.plain(*args, **kwargs)


class _PrepareCache(_StandIn):
    """For a model whose `generate` is several in a row: each has its cache where transformers would make one."""

    name = "_prepare_cache_for_generation"

    def __call__(self, settings: GenerationConfig, arguments: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if given_cache(arguments) is None and settings.use_cache is not False and not settings.cache_implementation:
            arguments.update(cache_argument(self.session.make_argument(0)))
        return self.plain(settings, arguments, *args, **kwargs)


_STAND_INS = (_Generate, _PrepareCache)


def _columns(args: Sequence[object], kwargs: Mapping[str, object]) -> int | None:
    """Of the prompt of a call `generate(*args, **kwargs)`; None if it is not known."""
    given = [kwargs.get(name) for name in ("inputs_embeds", "input_ids", "inputs")] + list(args[:1])
    prompt = next((x for x in given if isinstance(x, torch.Tensor)), None)
    return int(prompt.shape[1]) if prompt is not None and prompt.ndim > 1 else None


def _has_own(model: Model, name: str) -> bool:
    """Whether a model's method is another one than its class has."""
    method = vars(model).get(name)
    return method is not None and getattr(method, "__func__", None) is not getattr(type(model), name)


def _layers(model: Model) -> int | None:
    return getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)


class Session:
    """Inside its block every `model.generate` call without a cache of its own gets a fresh ReasonAllocCache.

    A call has a cache of its own if it is given one, names one (`cache_implementation`) or wants none
    (`use_cache=False`), by its arguments or by a generation config. Where a call generates several times, as Whisper's
    does for the parts of a recording, each time is one. Drafts by a model's own first layers (`assistant_early_exit`)
    have a cache of transformers.

    model: the transformers model, without what wraps it. last_cache: the cache that was made last, None before the
    first. caches: those that still exist. history: the figures of all.
    """

    def __init__(self, model: Model, config: Config, record: bool = False) -> None:
        check_config(config)
        self.model, self.config, self.record = unwrapped(model), config, record
        if any(_has_own(self.model, kind.name) for kind in _STAND_INS):
            raise ValueError("the model has a session already, or its generate was replaced; leave that one first")
        self.last_cache: ReasonAllocCache | None = None
        self._caches: list[weakref.ref[ReasonAllocCache]] = []
        self._history: list[CacheStats | ReasonAllocCache] = []  # a cache while it is the last one, or in use
        self._open: set[int] = set()  # places in it of caches
        self._in_use: set[int] = set()  # and of those whose generate is under way, perhaps in another thread
        self._lock = threading.Lock()
        was_active = is_active(self.model)
        ReasonAllocCache(model, config)  # a config that does not fit fails here, not in the first generate
        self._deactivate = not was_active
        self._layers = _layers(self.model)
        self._stand_in = (_PrepareCache if generates_in_parts(self.model) else _Generate)(self)
        setattr(self.model, self._stand_in.name, self._stand_in)
        self._closed = False

    @property
    def is_drafting(self) -> bool:
        """Whether a generate that is under way drafts its next tokens, by the model's first layers."""
        return _layers(self.model) != self._layers

    def make_argument(self, prompt_columns: int | None) -> Cache:
        """A fresh cache, which becomes `last_cache`, as generate takes it: cross-attention needs one of its own."""
        return self._argument(self._make(prompt_columns, in_use=False)[1])

    @contextmanager
    def serving(self, prompt_columns: int | None) -> Iterator[Cache]:
        """As `make_argument`, for one generate inside the block."""
        place, cache = self._make(prompt_columns, in_use=True)
        try:
            yield self._argument(cache)
        finally:
            with self._lock:
                self._in_use.discard(place)
                self._close_finished()

    def _make(self, prompt_columns: int | None, in_use: bool) -> tuple[int, ReasonAllocCache]:
        cache = ReasonAllocCache(self.model, self.config, record=self.record)
        cache.prompt_columns = prompt_columns
        with self._lock:
            place = len(self._history)
            self.last_cache = cache
            self._history.append(cache)
            self._open.add(place)
            if in_use:
                self._in_use.add(place)
            self._close_finished()
            self._caches = [x for x in self._caches if x() is not None] + [weakref.ref(cache)]
        return place, cache

    def _close_finished(self) -> None:
        """Leaves only the figures of caches that are neither the last one nor in use."""
        for place in self._open - self._in_use - {len(self._history) - 1}:
            if isinstance(cache := self._history[place], ReasonAllocCache):
                self._history[place] = cache.stats()
            self._open.discard(place)

    def _argument(self, cache: ReasonAllocCache) -> Cache:
        if self.model.config.is_encoder_decoder:
            return EncoderDecoderCache(cache, DynamicCache(config=self.model.config))
        return cache

    @property
    def caches(self) -> list[ReasonAllocCache]:
        """Caches of this session that somebody still holds, the oldest first; `last_cache` is always among them.

        A session holds the last one only, so that memory is freed: keep a cache, or read `history`, for earlier ones.
        """
        return [cache for x in self._caches if (cache := x()) is not None]

    @property
    def history(self) -> list[CacheStats]:
        """`stats()` of every cache so far, the oldest first."""
        return [x if isinstance(x, CacheStats) else x.stats() for x in list(self._history)]

    def close(self) -> None:
        """Undoes the installation; harmless when called twice or after `uninstall`."""
        self._closed = True
        if vars(self.model).get(self._stand_in.name) is self._stand_in:
            delattr(self.model, self._stand_in.name)
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


def install(model: Model, config: Config, *, record: bool = False) -> Session:
    """Gives every generate() of a model a fresh cache by `config`; undone when the block ends, errors included.

    model: a transformers model, compiled, in PEFT's, accelerate's or a parallel wrapper or as it is. Without `with`,
    call `.close()` of the session, or `ra.uninstall(model)`. record: as of `ReasonAllocCache`, so that
    `session.last_cache.trace(...)` can be had. Raises ValueError for a model in a session and as `ReasonAllocCache`.
    """
    return Session(model, config, record)


def uninstall(model: Model) -> None:
    """Undoes what `install` or `ReasonAllocCache` did to a model: its generate and its attention are its own again."""
    model = unwrapped(model)
    for kind in _STAND_INS:
        if isinstance(vars(model).get(kind.name), kind):
            delattr(model, kind.name)
    deactivate(model)
