"""Reference texts for teacher forcing: given ones, worked answers of a task, pieces of documents, or the model's own
solutions, generated once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from transformers.cache_utils import DynamicCache

from reasonalloc.fields import build
from reasonalloc.files import cache_folder, json_lines, read_json, replace_text
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.compat import cache_argument
from reasonalloc.hf.tokens import encode_prompt
from reasonalloc.lab.problems import Problem
from reasonalloc.lab.tasks import Item
from reasonalloc.protocols import Model, Tokenizer


@dataclass(frozen=True)
class Text:
    """Token ids of a prompt [P] and of its solution [T]."""

    id: str
    prompt: torch.Tensor
    solution: torch.Tensor


@dataclass(frozen=True)
class _Line:
    problem: str
    solution: str
    id: str | int | None = None


def read(path: str | Path, tokenizer: Tokenizer, tokens: int, count: int | None = None) -> list[Text]:
    """Texts of a JSON-lines file with the fields `problem` and `solution` (`id` if it has one), cut to `tokens`.

    Raises ValueError naming the line where one is not of that form, or if there is none; OSError if it cannot be read.
    """
    texts: list[Text] = []
    for where, row in json_lines(path):
        if len(texts) == count:
            break
        try:
            line = build(_Line, row, where, others=True)
        except ValueError as error:
            raise ValueError(f"{where}: expected an object with 'problem' and 'solution' ({error})") from error
        ids = tokenizer(line.solution, return_tensors="pt", add_special_tokens=False).input_ids[0, :tokens]
        if not len(ids):
            raise ValueError(f"{where}: the solution is empty")
        name = where.rpartition(":")[2] if line.id is None else str(line.id)
        texts.append(Text(name, encode_prompt(tokenizer, line.problem, "cpu")[0], ids.long()))
    if not texts:
        raise ValueError(f"{path} holds no text")
    return texts


def worked(items: Sequence[Item], tokenizer: Tokenizer, tokens: int) -> list[Text]:
    """The chains that a task's generator writes, cut to `tokens`; ValueError for items of a task that writes none."""
    if not items or not all(x.chain for x in items):
        raise ValueError("only tasks that make their problems have worked answers: ledger and search")
    found = []
    for item in items:
        ids = tokenizer(item.chain, return_tensors="pt", add_special_tokens=False).input_ids[0, :tokens]
        found.append(Text(item.id, encode_prompt(tokenizer, item.prompt, "cpu")[0], ids.long()))
    return found


def pieces(
    paths: Sequence[str | Path], tokenizer: Tokenizer, prompt: int, tokens: int, count: int | None = None
) -> list[Text]:
    """Documents (UTF-8), cut into pieces that follow on each other: `prompt` tokens that are read, then `tokens` that
    are fed one by one. A last piece that is shorter is left out. At most `count`, the first of each document before the
    second of any.

    Raises ValueError for a document without a whole piece; OSError if one cannot be read.
    """
    every: list[list[Text]] = []
    for path in map(Path, paths):
        try:
            ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0].long()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: {error}") from error
        size = prompt + tokens
        cut_up = [
            Text(f"{path.name}/{i}", piece[:prompt], piece[prompt:])
            for i, piece in enumerate(ids[: len(ids) // size * size].split(size))
            if len(piece)
        ]
        if not cut_up:
            raise ValueError(f"{path} has {len(ids)} tokens, less than a piece of {prompt} and {tokens}")
        every.append(cut_up)
    mixed = [x for round_ in zip_longest(*every) for x in round_ if x is not None]
    return mixed[:count]


def generate(
    model: Model,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[Text]:
    """The model's own solutions with the full cache, up to `tokens` tokens each or its end of text.

    temperature 0 is greedy. A text is made once: it is kept in `cache_folder("texts")` under a hash of the weights,
    the prompt and the settings, so an interrupted run goes on where it stopped.
    """
    weights, vocabulary = _digest_weights(model), model.config.get_text_config(decoder=True).vocab_size
    for problem in problems:
        prompt = encode_prompt(tokenizer, problem.problem, "cpu")[0]
        key = [weights, prompt.tolist(), tokens, temperature, seed if temperature else None]
        path = cache_folder("texts") / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
        ids = _kept(path, vocabulary)
        if ids is None:
            ids = _solve(model, tokenizer, prompt, tokens, temperature, seed)
            replace_text(path, json.dumps(ids))
        yield Text(problem.id, prompt, torch.tensor(ids))


def _kept(path: Path, vocabulary: int) -> list[int] | None:
    """Token ids of a text that was made before; None where there is none or its file is damaged."""
    try:
        ids = read_json(path, "text")
    except (OSError, ValueError):
        return None
    whole = isinstance(ids, list) and ids and all(type(x) is int and 0 <= x < vocabulary for x in ids)
    return ids if whole else None


def _solve(
    model: Model, tokenizer: Tokenizer, prompt: torch.Tensor, tokens: int, temperature: float, seed: int
) -> list[int]:
    ids = prompt[None].to(model.device)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    how = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, pad_token_id=pad,
            **cache_argument(DynamicCache(config=model.config)), **how,
        )  # fmt: skip
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def _digest_weights(model: Model) -> str:
    """A hash of the shape and of some numbers spread over each parameter."""
    digest = hashlib.sha256(json.dumps(fingerprint(model), sort_keys=True).encode())
    parameters: Iterable[tuple[str, torch.Tensor]] = model.named_parameters()
    for name, value in parameters:
        if value.is_meta:
            raise ValueError(f"{name} is offloaded, so no text of this model can be kept: give texts, or more devices")
        flat = value.detach().reshape(-1)
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        digest.update(flat[:: max(1, len(flat) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
