"""Accuracy: what budgets and methods do to the answers of a model that reasons in long chains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from reasonalloc.hf.decode import Chain, Sampling, generate
from reasonalloc.hf.tokens import encode_prompt, ends
from reasonalloc.lab.evaluate.cells import Cell, cell_name
from reasonalloc.lab.evaluate.grading import grade
from reasonalloc.lab.evaluate.points import points_of
from reasonalloc.lab.evaluate.records import Record
from reasonalloc.lab.tasks import Item
from reasonalloc.protocols import Model, Tokenizer

T = TypeVar("T")


def cells(
    methods: Sequence[str], budgets: Sequence[int], ratios: Sequence[float], settings: Mapping[str, Any]
) -> list[Cell]:
    """A cell for each method at each budget or ratio. settings: as of `points_of`."""
    return [Cell(cell_name(x), x) for x in points_of(methods, _once(budgets), _once(ratios), settings)]


def _once(values: Sequence[T]) -> list[T]:
    return list(dict.fromkeys(values))


@dataclass(frozen=True)
class Job:
    """One chain to make."""

    item: Item
    sample: int

    @property
    def key(self) -> str:
        return f"{self.item.id}/{self.sample}"


@dataclass(frozen=True)
class Batch:
    """Jobs of one cell that decode together."""

    cell: Cell
    jobs: tuple[Job, ...]

    def without(self, item: str, sample: int) -> Batch:
        """What is left when that chain is made."""
        return Batch(self.cell, tuple(x for x in self.jobs if (x.item.id, x.sample) != (item, sample)))


def plan(
    items: Sequence[Item],
    wanted: Sequence[Cell],
    samples: int,
    batch_size: int,
    done: Iterable[tuple[str, str, int]] = (),
) -> list[Batch]:
    """What is still to do. Items of one group come one after another: their chains are about as long as each other.

    done: keys of records that exist.
    """
    planned = set(done)
    batches = []
    for cell in wanted:
        groups: dict[str, list[Job]] = {}
        for item in items:
            for sample in range(samples):
                if (cell.name, item.id, sample) not in planned:
                    groups.setdefault(item.group, []).append(Job(item, sample))
                    planned.add((cell.name, item.id, sample))
        jobs = [x for group in groups.values() for x in group]
        batches += [Batch(cell, tuple(jobs[i : i + batch_size])) for i in range(0, len(jobs), batch_size)]
    return batches


def run_batch(
    model: Model,
    tokenizer: Tokenizer,
    batch: Batch,
    sampling: Sampling,
    progress: Callable[[int], None] | None = None,
    graphs: bool = False,
) -> Iterator[Record]:
    """The records of a batch, each as its chain ends. graphs: decode steps are CUDA graphs."""
    jobs = {job.key: job for job in batch.jobs}
    prompts = [(key, encode_prompt(tokenizer, job.item.prompt, "cpu")[0].tolist()) for key, job in jobs.items()]
    stop = ends(model, tokenizer)
    pad = tokenizer.pad_token_id or 0
    for chain in generate(model, batch.cell.config, prompts, stop, sampling, pad, progress, graphs):
        yield _record(batch.cell, jobs[chain.key], chain, tokenizer, sampling)


def _record(cell: Cell, job: Job, chain: Chain, tokenizer: Tokenizer, sampling: Sampling) -> Record:
    text = tokenizer.decode(chain.ids, skip_special_tokens=True)
    graded = grade(text, job.item.answers, job.item.asked)
    return Record(
        cell=cell.name, config=cell.hash, asked=job.item.hash, item=job.item.id, group=job.item.group,
        sample=job.sample, seed=sampling.seed, prompt_tokens=chain.prompt_tokens, tokens=len(chain.ids),
        finish=chain.finish, text=text, answers=graded.answers, right=graded.right, budget=cell.config.budget,
        ratio=cell.config.ratio, slots=chain.slots, mean_bytes=chain.mean_bytes, peak_bytes=chain.peak_bytes,
        seconds=chain.seconds, by_rule=graded.by_rule, again=graded.again,
    )  # fmt: skip
