"""Exact attention over tokens that lie in one piece, for what scaled dot-product attention leaves out."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from reasonalloc.hf.attention import AttentionSpec

_MOST_LOGITS = 1 << 24  # in memory at a time


def prompt_attention(
    module: Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    spec: AttentionSpec,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attention of a prompt's tokens among themselves, [B, T, Hq, Dv]: torch's own where that computes all of it."""
    if spec.softcap is not None or spec.sinks is not None:
        return attend_dense(query, key, value, mask, spec)
    if mask is None:  # not every module says that it is causal
        options = options | {"is_causal": True}
    out: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=spec.scale, **options)[0]
    return out


def attend_dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, spec: AttentionSpec
) -> torch.Tensor:
    """softmax over [softcap(q k^T scale) + mask, sinks], times v: [B, T, Hq, Dv], computed in float32.

    query [B, Hq, T, D], key [B, H, n, D], value [B, H, n, Dv]. mask: [B or 1, 1, T, n], flags or additive; None:
    causal, the last query sees every key. A query that sees nothing gets a mean of all values.
    """
    rows, heads, tokens, _ = query.shape
    group, n = heads // key.shape[1], key.shape[2]
    k, v = (x.float().repeat_interleave(group, 1) for x in (key, value))
    out = query.new_empty((rows, tokens, heads, value.shape[-1]))
    sinks = None if spec.sinks is None else spec.sinks.float().view(1, heads, 1, 1)
    least = torch.finfo(torch.float32).min
    at_once = max(1, _MOST_LOGITS // (rows * heads * n))
    for begin in range(0, tokens, at_once):
        part = slice(begin, min(begin + at_once, tokens))
        logits = query[:, :, part].float() @ k.transpose(-1, -2) * spec.scale
        if spec.softcap:
            logits = torch.tanh(logits / spec.softcap) * spec.softcap
        if mask is None:
            places = torch.arange(n - tokens + part.start, n - tokens + part.stop, device=query.device)
            logits.masked_fill_(torch.arange(n, device=query.device) > places[:, None], least)
        elif mask.dtype == torch.bool:
            logits.masked_fill_(~mask[:, :, part], least)
        else:
            logits = (logits + mask[:, :, part]).clamp(min=least)
        if sinks is not None:
            logits = torch.cat([logits, sinks.expand(rows, -1, logits.shape[2], -1)], -1)
        out[:, part] = (logits.softmax(-1)[..., :n] @ v).transpose(1, 2)
    return out
