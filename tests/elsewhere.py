"""Stands in for a GPU: the meta device, where an operation over tensors here and there is an error, as with CUDA."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.utils.generic import maybe_autocast

aten = torch.ops.aten
_BETWEEN = (aten._to_copy.default, aten.copy_.default)
_SIZED_BY_VALUES = {"nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select"}


def _is_known() -> bool:
    try:
        maybe_autocast("meta", enabled=False)
    except RuntimeError:
        return False
    return True


needs_meta = pytest.mark.skipif(not _is_known(), reason="models of this transformers do not run on the meta device")


class Elsewhere(TorchDispatchMode):
    """waits: operations for whose values a GPU would have been waited for. What comes from the device is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        places = {x.device.type for x in tensors if x.dim() or x.is_meta}
        if "meta" in places:
            if func is aten._local_scalar_dense.default:
                self.waits.append(str(func))
                return torch.zeros((), dtype=args[0].dtype).item()
            if func is aten._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu":
                self.waits.append(str(func))
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if func is aten.copy_.default and not args[0].is_meta:
                self.waits.append(str(func))
                return args[0].zero_()
            if len(places) > 1 and func not in _BETWEEN:
                raise AssertionError(f"{func} over tensors on {sorted(places)}: {[tuple(x.shape) for x in tensors]}")
            if func._schema.name.split("::")[1] in _SIZED_BY_VALUES:
                raise AssertionError(f"{func} has a result whose size depends on values on the device")
        return func(*args, **kwargs)
