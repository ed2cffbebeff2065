"""Self-distilled prompts: problems that the model, with its full cache, answers right greedily."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reasonalloc.fields import build
from reasonalloc.files import json_lines, read_text, replace_text
from reasonalloc.hf.decode import Sampling, decode
from reasonalloc.hf.tokens import encode_prompt, ends
from reasonalloc.lab.evaluate.grading import grade
from reasonalloc.lab.rlkv.rollout import attending_in_full, batch_of, rows_at_once
from reasonalloc.lab.tasks.base import Choice, Item
from reasonalloc.lab.tasks.file import items as items_of_file
from reasonalloc.lab.tasks.ledger import Dials, problem
from reasonalloc.protocols import Model, Tokenizer

_ROWS, _ROWS_GPU = 16, 240  # of a batch
_PROMPT = 512  # tokens that a question may have, for the memory of a batch


@dataclass(frozen=True)
class Prompt:
    """A problem that was tried. prompt: its token ids; chain: the greedy one."""

    id: str
    prompt: tuple[int, ...]
    chain: tuple[int, ...]
    answers: tuple[str, ...]
    asked: tuple[str, ...]
    right: bool


def candidates(file: str | None, seed: int) -> Iterator[Item]:
    """Of a JSON-lines file with `problem` and `answer`; else ledgers of 1 to 3 questions in the plain style."""
    if file is not None:
        yield from items_of_file(file, Choice(seed=seed))
        return
    index = 0
    while True:
        x = problem(f"rlkv/{seed}", index, Dials(questions=1 + index % 3))
        yield Item(x.id, x.prompt, tuple(map(str, x.answers)), "", x.asked)
        index += 1


def check_file(file: str | None, count: int) -> None:
    """ValueError or OSError for a file that cannot give so many problems."""
    if file is not None and (found := sum(1 for _ in candidates(file, 0))) < count:
        raise ValueError(f"{file} has {found} problems, asked for {count} that the model answers right")


def right(text: str, prompt: Prompt | Item) -> bool:
    """Whether every box is right: RLKV's reward, 0 or 1."""
    return all(grade(text, prompt.answers, prompt.asked).right)


def pool(
    folder: Path,
    model: Model,
    tokenizer: Tokenizer,
    count: int,
    file: str | None,
    seed: int,
    max_new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[Prompt]:
    """`count` prompts that are answered right, in the order in which they were tried.

    Kept in folder/prompts.jsonl with those answered wrong, a batch at a time, so an interrupted run goes on there.
    progress: called with how many there are. ValueError if a file has too few, or others than those tried.
    """
    path = folder / "prompts.jsonl"
    tried: list[Prompt] = []
    if path.is_file():
        whole = read_text(path)
        if not whole.endswith("\n"):  # a kill may tear the last line
            replace_text(path, whole[: whole.rfind("\n") + 1])
        tried = [build(Prompt, row, where) for where, row in json_lines(path)]
    items = candidates(file, seed)
    for x in tried:
        item = next(items, None)
        if item is None or (item.id, item.answers, item.asked, _ids(tokenizer, item)) != (
            x.id, x.answers, x.asked, x.prompt
        ):  # fmt: skip
            raise ValueError(f"{path}: {x.id} is not the problem of {file or 'ledger'} any more: take another folder")
    found = [x for x in tried if x.right]
    stop, pad = ends(model, tokenizer), _pad(tokenizer)
    rows = rows_at_once(model, max_new_tokens + _PROMPT, _ROWS, _ROWS_GPU)
    while len(found) < count:
        if progress:
            progress(len(found))
        batch = [x for _, x in zip(range(rows), items, strict=False)]
        if not batch:
            raise ValueError(f"{file} has {len(found)} problems that the model answers right, asked for {count}")
        fresh = list(_try(model, tokenizer, batch, stop, pad, max_new_tokens))
        with path.open("a", encoding="utf-8") as lines:
            lines.write("".join(json.dumps(asdict(x)) + "\n" for x in fresh))
        found += [x for x in fresh if x.right]
    return found[:count]


def _try(
    model: Model, tokenizer: Tokenizer, batch: Sequence[Item], stop: frozenset[int], pad: int, most: int
) -> Iterator[Prompt]:
    ids = {str(i): _ids(tokenizer, x) for i, x in enumerate(batch)}
    sampling = Sampling(max_new_tokens=most)
    with attending_in_full(model):
        rows = batch_of(model, list(ids.values()), most, pad)
        done = {c.key: c for c in decode(rows, list(ids.items()), stop, sampling)}
    for i, item in enumerate(batch):
        chain = done[str(i)]
        text = tokenizer.decode(chain.ids, skip_special_tokens=True)
        well = chain.finish == "stop" and right(text, item)
        yield Prompt(item.id, ids[str(i)], tuple(chain.ids), item.answers, item.asked, well)


def _ids(tokenizer: Tokenizer, item: Item) -> tuple[int, ...]:
    return tuple(encode_prompt(tokenizer, item.prompt, "cpu")[0].tolist())


def _pad(tokenizer: Tokenizer) -> int:
    return next((x for x in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(x, int)), 0)


def of_step(prompts: Sequence[Prompt], step: int, steps: int, count: int, seed: int) -> list[Prompt]:
    """The prompts of a step: chains grow from short to long in thirds, each third gone through in a drawn order."""
    by_length = sorted(prompts, key=lambda x: (len(x.chain), x.id))
    third = min(3 * step // max(steps, 1), 2)
    first = -(-third * steps // 3)  # the third's first step
    begin, end = third * len(by_length) // 3, (third + 1) * len(by_length) // 3
    part = by_length[begin:end] or by_length
    at, chosen = (step - first) * count, []
    for i in range(at, at + count):
        order = random.Random(f"{seed}/{third}/{i // len(part)}").sample(range(len(part)), len(part))
        chosen.append(part[order[i % len(part)]])
    return chosen
