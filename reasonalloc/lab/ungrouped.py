"""A model with a KV head for every query head: the same function, with more heads to share slots out over."""

from __future__ import annotations

from typing import Any

from reasonalloc.protocols import Model

SUFFIX = ":ungrouped"


def split(name: str | None) -> tuple[str | None, bool]:
    """A model's name without the suffix, and whether it had it; "" stands for no name."""
    if name is None or not name.endswith(SUFFIX):
        return name, False
    return name.removesuffix(SUFFIX) or None, True


def ungroup_config(config: Any) -> None:
    """The config of the model that `ungroup` makes."""
    config.num_key_value_heads = config.num_attention_heads


def ungroup(model: Model) -> Model:
    """Repeats the projections of each KV head for the query heads that share it, in place; returns the model.

    ValueError, with nothing changed, for attention without projections of its own for keys and values, and for
    quantised ones.
    """
    import torch

    found: list[Any] = [x for x in model.modules() if hasattr(x, "num_key_value_groups")]
    for module in found:
        for name in ("k_proj", "v_proj"):
            if type(getattr(module, name, None)) is not torch.nn.Linear:
                raise ValueError(f"{type(module).__name__} has no plain {name}: its KV heads cannot be un-grouped")
    if not found:
        raise ValueError(f"{type(model).__name__} has no grouped KV heads that could be un-grouped")
    for module in found:
        groups, size = module.num_key_value_groups, module.head_dim
        for name in ("k_proj", "v_proj"):
            setattr(module, name, _repeated(getattr(module, name), groups, size))
        module.num_key_value_groups = 1
    ungroup_config(model.config)
    return model


def _repeated(linear: Any, groups: int, size: int) -> Any:
    import torch

    def heads(x: torch.Tensor) -> torch.nn.Parameter:
        apart = x.detach().unflatten(0, (-1, size)).repeat_interleave(groups, 0).flatten(0, 1)
        return torch.nn.Parameter(apart, requires_grad=x.requires_grad)

    has_bias = linear.bias is not None
    wide = torch.nn.Linear(linear.in_features, linear.out_features * groups, bias=has_bias, device="meta")
    wide.weight = heads(linear.weight)
    if has_bias:
        wide.bias = heads(linear.bias)
    return wide
