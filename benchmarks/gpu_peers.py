"""Attention of other libraries over what layers of ours hold, where these are installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gpu_layers import Layer

Call = Callable[[], Any]
LEFT_OUT: set[str] = set()  # contenders that cannot be had, which stderr was told of
_FAR = 0.02  # outputs from float32, over the largest


def peer_steps(layers: Sequence[Layer]) -> dict[str, Call]:
    """A decode step of each layer's attention by each contender that can be had."""
    steps: dict[str, Call] = {}
    for name, (package, make) in PEERS.items():
        if name in LEFT_OUT:
            continue
        try:
            module = import_module(package)
        except ImportError:
            continue
        try:
            calls = [make(module, layer) for layer in layers]
            calls[0]()
            layers[0].clock.wait()
        except (OSError, RuntimeError) as error:  # kernels may be compiled when asked for, which fails without sources
            if not isinstance(error, torch.OutOfMemoryError):  # which is of this case alone
                LEFT_OUT.add(name)
            reason = (str(error).splitlines() or [type(error).__name__])[0]  # what compilers say is long
            print(f"without {name}: {reason}", file=sys.stderr)
            continue
        steps[name] = partial(_each, calls)
    return steps


def _each(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _flashinfer(flashinfer: Any, layer: Layer, matrix: bool) -> Call:
    """Paged decode, a request of one KV head for each (row, head), page 16; random keys."""
    shape = layer.shape
    requests = len(layer.lengths) * shape.kv_heads
    lengths = torch.tensor([n + 1 for n in layer.lengths for _ in range(shape.kv_heads)], dtype=torch.int32)
    pages = (lengths + 15) // 16
    indptr = torch.cat([torch.zeros(1, dtype=torch.int32), pages.cumsum(0).int()])
    size = (int(indptr[-1]), 2, 16, 1, shape.head_dim)
    cache = torch.randn(*size, device=layer.clock.device).to(layer.query.dtype)
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=layer.clock.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=matrix, backend="fa2")
    wrapper.plan(
        indptr.to(cache.device), torch.arange(int(indptr[-1]), dtype=torch.int32, device=cache.device),
        ((lengths - 1) % 16 + 1).to(cache.device), shape.group, 1, shape.head_dim, 16, q_data_type=cache.dtype,
    )  # fmt: skip
    return partial(wrapper.run, layer.query.reshape(requests, shape.group, shape.head_dim), cache)


def _flash_attention(flash_attn: Any, layer: Layer) -> Call:
    """Rows of their own lengths over keys and values in one piece; RuntimeError if it is not what float32 gives."""
    keys, values = (x.transpose(1, 2).contiguous() for x in (layer.keys, layer.values))
    lengths = torch.tensor([n + 1 for n in layer.lengths], dtype=torch.int32, device=layer.clock.device)
    query = layer.query.transpose(1, 2)
    call = partial(
        flash_attn.flash_attn_with_kvcache, query, keys, values, cache_seqlens=lengths, softmax_scale=layer.scale,
        causal=True,
    )  # fmt: skip
    error = layer.error(call().transpose(1, 2))
    if not error <= _FAR:
        raise RuntimeError(f"it is {error:.2e} from float32, allowed are {_FAR}")
    return call


PEERS: dict[str, tuple[str, Callable[[Any, Layer], Call]]] = {
    "FlashInfer": ("flashinfer", partial(_flashinfer, matrix=False)),
    "FlashInfer, tensor cores": ("flashinfer", partial(_flashinfer, matrix=True)),
    "FlashAttention": ("flash_attn", _flash_attention),
}
