"""The attention function that transformers calls, and switching a model to it and back."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch.nn import Module
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from reasonalloc.hf.compat import unwrapped
from reasonalloc.protocols import Model

NAME = "reasonalloc"
_PREVIOUS = "_reasonalloc_previous_attention"


class AttentionSpec(NamedTuple):
    """What a model asks of its attention beside queries, keys and values.

    scale: of the logits. softcap: logits become softcap * tanh(logit / softcap). sinks: [Hq] logits of a token that
    has no value, which takes its share of every softmax.
    """

    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @classmethod
    def of(cls, module: Module, query: torch.Tensor, scaling: float | None, options: dict[str, Any]) -> AttentionSpec:
        """What an attention module asks for; ValueError for what the cache does not compute."""
        if options.get("position_bias") is not None:
            raise ValueError(f"{type(module).__name__} adds a position bias to its logits, which the cache does not")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return cls(scale, options.get("softcap"), options.get("s_aux"))


F = TypeVar("F", bound=Callable[..., object])

try:
    from torch._C._dynamo.eval_frame import get_eval_frame_callback

    _COMPILER_CAN_BE_SEEN = True
except ImportError:  # of another torch
    _COMPILER_CAN_BE_SEEN = False

    def get_eval_frame_callback():  # type: ignore[no-untyped-def,misc]
        return None


_NO_COMPILER = (None, False)


def _alone(function: F) -> F:
    """A function before which compilers break their graph, and which calls nothing that they would compile."""
    try:
        from torch._dynamo.decorators import skip  # `disable(recursive=False)` without a wrapper around each call
    except ImportError:
        return cast(F, torch.compiler.disable(function, recursive=False))
    return cast(F, skip(function))


class Attends(Protocol):
    """A cache that computes the attention of its layers."""

    def attend(
        self,
        layer: int,
        module: Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """[B, T, Hq, Dv] for the keys that a layer was given last."""


# A cache, one of its layers, and the keys that the layer has just returned to the model.
_Turn = tuple[weakref.ref[Attends], int, torch.Tensor]


class _Expected(threading.local):
    """What this thread's next attention is about, and the mask [B, columns] that its pass was given."""

    turn: _Turn | None = None
    mask: torch.Tensor | None = None


_expected = _Expected()

# Models whose own attention is an eager function: their masks are never left out, for not all say that they are causal.
# By the ids of their configs.
_eager_configs: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()
# Of a layer's new keys whose attention a cache has computed: nobody may take them for all of its keys.
SERVED = "_reasonalloc_served"


@_alone  # the tensors are real ones then: a compiled model breaks its graph here
def expect(cache: Attends, layer: int, key: torch.Tensor) -> None:
    """Announces that the next attention belongs to a layer of a cache, which just returned `key` to the model."""
    _expected.turn = (weakref.ref(cache), layer, key)


@_alone
def _forget_expected() -> None:
    _expected.turn = None


def _is_rebuilt(module: Module, key: torch.Tensor, layer: int, own: torch.Tensor) -> bool:
    """Whether `key` was made of what a layer returned: some models rebuild keys then."""
    alike = key.shape[0] == own.shape[0] and key.shape[2] == own.shape[2]
    return alike and bool(getattr(module, "layer_idx", layer) == layer)


def own_attention(
    module: Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention that a model had before: its own eager function, else scaled dot-product attention.

    Returns [B, T, Hq, Dv] and, of an eager function, the weights.
    """
    if getattr(module, _PREVIOUS, "sdpa") == "eager":
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if eager is not None:
            mask = _additive(module, attention_mask, query, key, options)
            return eager(module, query, key, value, mask, scaling=scaling, **options)  # type: ignore[no-any-return]
    output: torch.Tensor = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )[0]
    return output, None


def _additive(
    module: Module, mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor | None:
    """The mask as eager functions take it: 0 where a token is seen, else the least number."""
    if mask is None:  # left out where it would be the plain causal one
        causal = options.get("is_causal")
        if not (getattr(module, "is_causal", True) if causal is None else causal) or query.shape[2] == 1:
            return None
        # keys beyond the queries are the room of a static cache
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


@_alone
def attention_forward(
    module: Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Called by every attention module of a model set to "reasonalloc".

    What one of our caches does not expect goes to the model's own attention, so a model stays as it was without them.
    """
    if get_eval_frame_callback() not in _NO_COMPILER:
        # Frames that are called from here would be compiled, which they are not made for; the detour has a price.
        shielded: tuple[torch.Tensor, torch.Tensor | None] = _uncompiled(
            module, query, key, value, attention_mask, scaling, **options
        )
        return shielded
    turn = _expected.turn
    if turn is not None and (key is turn[2] or _is_rebuilt(module, key, *turn[1:])):
        cache: Attends | None = turn[0]()
        if cache is not None:
            _expected.turn = None
            return cache.attend(turn[1], module, query, key, value, attention_mask, scaling, options), None
    _keep_mask(None)  # it was of a pass that no cache of ours serves; one in a cache's pass has been taken
    if (served := getattr(key, SERVED, None)) is not None:
        raise ValueError(
            f"{type(module).__name__} reads the keys of layer {served} a second time, which ReasonAllocCache does"
            " not serve"
        )
    return own_attention(module, query, key, value, attention_mask, scaling, **options)


_uncompiled = torch.compiler.disable(attention_forward)


@_alone
def _keep_mask(mask: torch.Tensor | None) -> None:
    _expected.mask = mask


@_alone
def take_mask() -> torch.Tensor | None:
    """The mask [B, columns] of the pass that has just begun in this thread; None if it was given none or another."""
    mask, _expected.mask = _expected.mask, None
    return mask


def _mask(*args: Any, config: Any = None, **kwargs: Any) -> torch.Tensor | None:
    _forget_expected()  # a new forward pass: what was expected went with one that failed
    is_eager = config is not None and _eager_configs.get(id(config)) is config
    mask: torch.Tensor | None
    if "allow_is_bidirectional_skip" in kwargs:  # of an encoder, or of who reads it: not of the tokens of a cache
        # some encoders compute their eager attention themselves, and add what they are given
        mask = (eager_mask if is_eager else sdpa_mask)(*args, **kwargs)
        return mask
    _keep_mask(kwargs.get("attention_mask"))
    if is_eager:
        kwargs["allow_is_causal_skip"] = False
    mask = sdpa_mask(*args, **kwargs)
    return mask


# Without the second line transformers would silently pass no mask at all.
AttentionInterface.register(NAME, attention_forward if _COMPILER_CAN_BE_SEEN else _uncompiled)
AttentionMaskInterface.register(NAME, _mask)


def text_config(model: Model) -> Any:
    """The config that says which attention the model's decoder has."""
    return unwrapped(model).config.get_text_config(decoder=True)


def is_active(model: Model) -> bool:
    return bool(text_config(model)._attn_implementation == NAME)


def _set(model: Any, attention: dict[str, str | None]) -> None:
    """attention: by the names of the model's sub-configs, "" for its own."""
    model.set_attn_implementation(attention if len(attention) > 1 else attention[""])


def activate(model: Model) -> None:
    """Switches the model to our attention, remembering what it had."""
    model = unwrapped(model)
    if is_active(model):
        return
    previous: dict[str, str | None] = {"": model.config._attn_implementation}
    for key in model.config.sub_configs:
        sub = getattr(model.config, key, None)
        if sub is not None:
            previous[key] = sub._attn_implementation
    modules: Iterator[Any] = model.modules()
    own = [(m, m.config._attn_implementation) for m in modules if hasattr(m, "config")]
    model.set_attn_implementation(NAME)
    if not is_active(model):
        _set(model, previous)  # parts of it may have been switched
        raise ValueError(
            f"{type(model).__name__} is not supported: it does not take its attention from transformers'"
            " AttentionInterface"
        )
    for module, name in own:
        setattr(module, _PREVIOUS, name)
    if "eager" in previous.values():
        _eager_configs.update({id(each): each for each in (model.config, text_config(model))})
    setattr(model, _PREVIOUS, previous)


def deactivate(model: Model) -> None:
    """Gives the model back the attention that it had before `activate`; nothing if it was not switched."""
    model = unwrapped(model)
    previous = getattr(model, _PREVIOUS, None)
    if previous is None:
        return
    for each in (model.config, text_config(model)):
        _eager_configs.pop(id(each), None)
    _set(model, previous)
    for module in model.modules():
        vars(module).pop(_PREVIOUS, None)


@contextmanager
def using(model: Model) -> Iterator[None]:
    """The model on our attention inside the block; as before afterwards, errors included."""
    was_active = is_active(model)
    activate(model)
    try:
        yield
    finally:
        if not was_active:
            deactivate(model)


@contextmanager
def not_using(model: Model) -> Iterator[None]:
    """The model on its own attention inside the block; as before afterwards, errors included."""
    was_active = is_active(model)
    deactivate(model)
    try:
        yield
    finally:
        activate(model) if was_active else deactivate(model)
