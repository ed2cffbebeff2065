"""Measuring which KV heads of a layer need how many slots of the chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reasonalloc import score
from reasonalloc.hf.attention import AttentionSpec
from reasonalloc.hf.profile import MOST_PROMPTS, chains_of
from reasonalloc.hf.tokens import encode_prompt
from reasonalloc.hf.watch import of_layers
from reasonalloc.policy.wave import attention
from reasonalloc.protocols import Model, Tokenizer

STEP = 4  # slots between two points of a curve
Curves = npt.NDArray[np.float64]


def saved(
    queries: torch.Tensor, keys: torch.Tensor, spec: AttentionSpec, prompt: int, slots: int, window: int, interval: int,
    scorer: dict[str, Any],
) -> Curves:  # fmt: skip
    """Attention of the queries to come that k slots save, mean over a text's cuts: [H, slots / STEP + 1] for k = 0,
    STEP, ...; zeros for a text too short to be cut.

    queries: [Hq, n, d], keys: [H, n, d]. A cut at t keeps the k best of the tokens from `prompt` to the window by
    R-KV's score; what counts is the mass that the queries of the next interval lay on them, mean over these queries and
    the head's group. What earlier cuts would have evicted is there.
    """
    heads, n, d = keys.shape
    points = slots // STEP + 1
    total, cuts = np.zeros((heads, points)), 0
    for t in range(prompt + window + interval, n - interval // 2, interval):
        older, end = t - window, min(n, t + interval)
        scores = score.rkv(queries[:, older:t] * (spec.scale * d**0.5), keys[:, :t], **scorer)[:, prompt:]
        later = attention(queries[:, t:end], keys[:, :end], spec.scale, spec.softcap, spec.sinks)
        mass = later.mean((1, 2))[:, prompt:older].cpu()  # where the scores are
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices
        best = mass.gather(1, order).double().cumsum(1).numpy()
        best = np.concatenate([np.zeros((heads, 1)), best], 1)
        total += best[:, np.minimum(np.arange(points) * STEP, best.shape[1] - 1)]
        cuts += 1
    return total / max(cuts, 1)


def best_shares(curves: Curves, slots: int, lo: float = 0.25, hi: float = 2.5) -> npt.NDArray[np.float64]:
    """[H] shares with mean 1 that save most together: the steepest parts of the curves' concave hulls, first.

    curves: [H, points]. slots: of a head on the average. Each head gets between lo and hi times that.
    """
    heads = len(curves)
    least, most = int(lo * slots / STEP), min(int(hi * slots / STEP), curves.shape[1] - 1)
    given, left = [least] * heads, heads * (slots // STEP) - heads * least
    hulls = [_hull(curve[least : most + 1]) for curve in curves]
    gains = sorted(((gain, h) for h, hull in enumerate(hulls) for gain in hull), key=lambda x: -x[0])
    for _, h in gains[: max(left, 0)]:
        given[h] += 1
    return np.asarray(given, np.float64) * heads / max(sum(given), 1)


def _hull(curve: npt.NDArray[np.float64]) -> list[float]:
    """Steps of the least concave curve above one: they fall."""
    slopes: list[tuple[float, int]] = []  # (slope, points)
    for step in np.diff(curve):
        slope, points = float(step), 1
        while slopes and slopes[-1][0] < slope:
            before, count = slopes.pop()
            slope, points = (before * count + slope * points) / (count + points), count + points
        slopes.append((slope, points))
    return [slope for slope, points in slopes for _ in range(points)]


def head_profile(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    slots: int,
    window: int = 8,
    interval: int = 128,
    keep_prompt: bool = True,
    alpha: float = 0.1,
    threshold: float = 0.5,
    kernel: int = 7,
    lo: float = 0.25,
    hi: float = 2.5,
    max_new_tokens: int = 1024,
    progress: bool = True,
) -> npt.NDArray[np.float64]:
    """Shares of each layer's heads that save most of the attention to come, on prompts with their generated chains.

    For `heads="profile"`; `policy.gates.write_gates` writes them. slots: of a head for the chain, without prompt and
    window. keep_prompt: the prompt is kept and not shared out. lo, hi: bounds of a share. The others as in `Config`.
    Returns float64 [layers with a budget, H], mean 1 in each layer; ones where no text was long enough to be cut.
    Raises ValueError for no or more than 8 prompts, or no slots.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise ValueError(f"a profile is measured on 1 to {MOST_PROMPTS} prompts, got {len(prompts)}")
    if slots < STEP or window < 1 or interval < 2:
        raise ValueError(
            f"slots must be at least {STEP}, window and interval positive, got {slots}, {window}, {interval}"
        )
    if not 0 <= lo <= 1 <= hi:
        raise ValueError(f"bounds must satisfy 0 <= lo <= 1 <= hi, got {lo} and {hi}")
    scorer = {"alpha": alpha, "threshold": threshold, "kernel": kernel}
    most = int(hi * slots) + STEP

    def curves_of(ids: torch.Tensor, kept: int) -> dict[int, Curves]:
        def look(q: torch.Tensor, k: torch.Tensor, spec: AttentionSpec) -> Curves:
            return saved(q.float(), k.float(), spec, kept, most, window, interval, scorer)

        return of_layers(model, ids, look)

    curves: dict[int, Curves] = {}
    for prompt, ids in zip(prompts, chains_of(model, tokenizer, prompts, max_new_tokens, progress), strict=True):
        kept = encode_prompt(tokenizer, prompt, "cpu").shape[1] if keep_prompt else 0
        for layer, found in curves_of(ids, kept).items():
            curves[layer] = curves.get(layer, 0.0) + found / len(prompts)
    return np.stack([best_shares(x, slots, lo, hi) if x.any() else np.ones(len(x)) for x in curves.values()])
