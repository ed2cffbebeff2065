"""Measuring what methods need to know of a model's queries, keys and values beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from reasonalloc.files import encoded
from reasonalloc.fingerprint import digest, dtype_name, fingerprint, weights_digest
from reasonalloc.hf.attention import using
from reasonalloc.hf.compat import budgeted_layers, cache_argument, unwrapped
from reasonalloc.hf.head_profile import STEP, head_profile
from reasonalloc.hf.moments import LayerSums
from reasonalloc.hf.profile import MOST_PROMPTS, profile
from reasonalloc.hf.rotation import find_rotations
from reasonalloc.hf.watch import WatchedCache
from reasonalloc.policy.calibration import CHEAP, Calibration, LayerCalibration, parts_of, rope_parameters
from reasonalloc.policy.wave import WaveProfile
from reasonalloc.protocols import Model, Tokenizer


def calibrate(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    for_: str | Sequence[str] = CHEAP,
    length: int = 4096,
    chunk: int = 512,
    slots: int = 128,
    progress: bool = True,
) -> Calibration:
    """Measures a model's queries, keys and values on plain texts, in one pass over them.

    Texts are cut into pieces of `length` tokens, each at positions 0, 1, ..., which go through the model `chunk` tokens
    at a time. Memory does not grow with the texts: sums, and of the ranges the tails of each channel (of at most some
    200 000 tokens, evenly taken from more).

    for_: systems, for what they need: the methods "triattention" and "reasonalloc", and "kvquant" and "palu", which are
    no methods here; or parts: "queries", "moments", "ranges" (the three by default), "fisher" (a backward pass for each
    `chunk` tokens, which begin anew there), "wave" (`ra.profile` on the beginnings of the first 8 texts) and "heads"
    (`hf.head_profile` on these, for `slots` of a head above prompt and window). progress: show a bar on standard error.

    Queries and keys are taken where attention is given them, after any norm and with RoPE, and turned back by their
    positions. How a layer rotates is found by running the model (`reasonalloc.hf.rotation`).
    Raises ValueError for a model whose positions do something else, no texts, or sizes below 2.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    parts = parts_of(for_)
    if length < 2 or chunk < 2:
        raise ValueError(f"length and chunk must be at least 2, got {length} and {chunk}")
    if slots < STEP:
        raise ValueError(f"slots must be at least {STEP}, got {slots}")
    model = unwrapped(model)
    pieces = _pieces(tokenizer, texts, length)
    tokens = sum(map(len, pieces))
    managed = budgeted_layers(model)
    rotations = find_rotations(model, managed)
    sums = {i: LayerSums(rotations[i], parts, tokens) for i in managed}
    with _evaluating(model), tqdm(desc="calibrating", unit="token", total=tokens, disable=not progress) as bar:
        if {"queries", "moments", "ranges"} & set(parts):
            for piece in pieces:
                _gather(model, piece, sums, chunk, bar)
        if "fisher" in parts:
            bar.reset(total=tokens)
            for piece in pieces:
                _gather_gradients(model, piece, sums, chunk, bar)
    wave = profile(model, tokenizer, _prompts(texts), progress=progress) if "wave" in parts else None
    layers = {i: x.result() for i, x in sums.items()}
    if "heads" in parts:
        shares = head_profile(model, tokenizer, _prompts(texts), slots=slots, progress=progress)
        layers = {
            i: replace(x, head_share=torch.from_numpy(own).float())
            for (i, x), own in zip(layers.items(), shares, strict=True)
        }
    source: dict[str, object] = {
        "texts": digest(texts),
        "text_count": len(texts),
        "tokens": tokens,
        "length": length,
        "chunk": chunk,
    }
    if "heads" in parts:
        source["slots"] = slots
    return calibration_of(model, layers, source, wave)


def calibration_of(
    model: Model,
    layers: dict[int, LayerCalibration],
    source: dict[str, object],
    wave: WaveProfile | None = None,
) -> Calibration:
    """A calibration of a model, with its identity and where it comes from."""
    return Calibration(
        model=fingerprint(model),
        layers=layers,
        rope=rope_parameters(model),
        weights=weights_digest(model, rounded=True),
        dtype=dtype_name(model.dtype),
        wave=wave,
        source={
            "model": getattr(model.config, "_name_or_path", "") or type(model).__name__,
            **source,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _pieces(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> list[list[int]]:
    pieces = []
    for i, text in enumerate(texts):
        encoded(text, f"text {i}")
        ids = tokenizer(text, return_tensors="pt").input_ids[0].tolist()
        pieces += [ids[begin : begin + length] for begin in range(0, len(ids), length)]
    pieces = [x for x in pieces if len(x) > 1]
    if not pieces:
        raise ValueError(f"{len(texts)} texts without two tokens: there is nothing to measure")
    return pieces


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Without dropout and the like, on our attention."""
    training = [x for x in model.modules() if x.training]
    model.eval()
    try:
        with using(model):
            yield
    finally:
        for x in training:
            x.training = True


def _gather(model: Model, piece: list[int], sums: dict[int, LayerSums], chunk: int, bar: Any) -> None:
    begin = 0

    def look(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        if layer in sums:
            sums[layer].add(query[0], key[0], value[0], begin)

    cache = WatchedCache(model, look)
    with torch.no_grad():
        for begin in range(0, len(piece), chunk):
            ids = torch.tensor([piece[begin : begin + chunk]], device=model.device)
            model(input_ids=ids, **cache_argument(cache), use_cache=True, logits_to_keep=1)
            bar.update(ids.shape[1])


def _gather_gradients(model: Model, piece: list[int], sums: dict[int, LayerSums], chunk: int, bar: Any) -> None:
    """Squared gradients of the loss, of stretches of `chunk` tokens that each begin anew."""

    def look(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        if layer in sums:
            layer_sums = sums[layer]
            key.register_hook(lambda gradient: layer_sums.add_gradient("key", gradient[0]))
            value.register_hook(lambda gradient: layer_sums.add_gradient("value", gradient[0]))

    wanted = [x for x in model.parameters() if x.requires_grad]
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    try:
        for x in wanted:  # theirs are not asked for
            x.requires_grad_(False)
        for begin in range(0, len(piece) - 1, chunk):
            ids = torch.tensor([piece[begin : begin + chunk]], device=model.device)
            if ids.shape[1] > 1:
                with torch.enable_grad():
                    output = model(input_ids=ids, **cache_argument(WatchedCache(model, look)), use_cache=True)
                    logits = output.logits[0, :-1].float()
                    # the sum, so that each token's own loss counts alike whatever the length of the stretch
                    torch.nn.functional.cross_entropy(logits, ids[0, 1:].to(logits.device), reduction="sum").backward()
            bar.update(ids.shape[1])
    finally:
        hook.remove()
        for x in wanted:
            x.requires_grad_(True)


def _prompts(texts: Sequence[str]) -> list[str]:
    """What chains are generated from: the beginnings of the first texts."""
    return [x[:2000] for x in texts if x.strip()][:MOST_PROMPTS]
