"""Batches spread over Ray actors, each with a model of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reasonalloc.files import Json
from reasonalloc.hf.decode import Sampling, not_applied, warn_of
from reasonalloc.hf.profile import profile
from reasonalloc.lab import models
from reasonalloc.lab.evaluate.accuracy import Batch, run_batch
from reasonalloc.lab.evaluate.records import Record
from reasonalloc.lab.evaluate.stock import Start, start
from reasonalloc.policy.wave import WaveProfile
from reasonalloc.protocols import Model, Tokenizer

INSTALL = "pip install '.[ray]' in a checkout of reasonalloc"
ATTEMPTS = 4  # of a batch whose worker dies, before the run gives up


@dataclass(frozen=True)
class Source:
    """How a worker gets its model. device_map: as accelerate takes it ("auto", "cpu", ...), None for the CPU. graphs:
    decode steps are CUDA graphs."""

    model: str | None
    dtype: str = "float32"
    threads: int | None = None
    device_map: str | None = None
    graphs: bool = False

    def load(self) -> tuple[Model, Tokenizer, str]:
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        return models.load(self.model, self.dtype, self.device_map)


class Worker:
    """Runs in an actor's process."""

    def __init__(self, source: Source) -> None:
        self.model, self.tokenizer, _ = source.load()
        self.graphs = source.graphs

    def ready(self, sampling: Sampling, prompts: Sequence[str]) -> tuple[Json, Start]:
        """Comes back when the model is loaded, with what it asks for that is not applied, and where it is."""
        return not_applied(self.model, sampling), start(self.model, self.tokenizer, prompts)

    def profile(self, prompts: Sequence[str], how: dict[str, Any]) -> WaveProfile:
        return profile(self.model, self.tokenizer, prompts, progress=False, **how)

    def run(self, batch: Batch, sampling: Sampling) -> Iterator[Record]:
        yield from run_batch(self.model, self.tokenizer, batch, sampling, graphs=self.graphs)


def run_on_ray(
    source: Source,
    batches: Sequence[Batch],
    sampling: Sampling,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus: float = 0,
    started: Callable[[list[Any]], None] | None = None,
    on_start: Callable[[Start], None] | None = None,
) -> Iterator[Record]:
    """The records of all batches in the order in which their chains end.

    address: of a running cluster, None for one on this machine that ends with the run. workers: actors, at most as
    many as the cluster has room for (None). gpus: of each, whose CPUs are the source's threads. What is left of a
    batch whose worker dies goes to a fresh one (ATTEMPTS times in all). started: called with the actors. on_start:
    called with the `stock.start` of each, once where they are the same. Raises ModuleNotFoundError where Ray is
    missing, ValueError where there is no room for a worker and RuntimeError for a batch that killed all its workers; an
    error of the model is raised as it is.
    """
    with _cluster(address) as ray:
        actor, room = _actor(ray, source, gpus)
        pool = [actor.remote(source) for _ in range(max(1, min(workers or room, room, len(batches))))]
        ready = _answers(ray, [x.ready.remote(sampling, first_prompts(batches)) for x in pool])
        warn_of(ready[0][0])
        for i, (_, where) in enumerate(ready):
            if on_start and where not in [x for _, x in ready[:i]]:
                on_start(where)
        if started:
            started(pool)
        yield from _serve(ray, actor, source, pool, batches, sampling)


def profile_on_ray(
    source: Source, prompts: Sequence[str], *, address: str | None = None, gpus: float = 0, **how: Any
) -> WaveProfile:
    """`wave.profile` in an actor. how: its max_new_tokens and rho; the rest as `run_on_ray`."""
    with _cluster(address) as ray:
        actor, _ = _actor(ray, source, gpus)
        (found,) = _answers(ray, [actor.remote(source).profile.remote(list(prompts), how)])
        return found  # type: ignore[no-any-return]


def first_prompts(batches: Sequence[Batch]) -> list[str]:
    """Of the first batch: a start looks at some of them."""
    return [x.item.prompt for x in batches[0].jobs]


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"--ray needs Ray: {INSTALL}") from error
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _actor(ray: Any, source: Source, gpus: float) -> tuple[Any, int]:
    """The class of actors with what each takes, and how many there is room for: one more would wait for ever."""
    free, needs = ray.cluster_resources(), {"CPU": source.threads or 1, "GPU": gpus}
    room = min(int(free.get(kind, 0) / share) for kind, share in needs.items() if share)
    if room < 1:
        has = {kind: free.get(kind, 0) for kind, share in needs.items() if share}
        raise ValueError(f"the cluster has {has}, and a worker needs {needs}: fewer --threads or --gpus fit")
    return ray.remote(Worker).options(num_cpus=needs["CPU"], num_gpus=gpus), room


def _answers(ray: Any, pending: list[Any]) -> list[Any]:
    """Of fresh workers; ValueError where one could not be started."""
    try:
        return ray.get(pending)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # the model's or the cache's own error
    except ray.exceptions.RayError as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"a worker could not be started: {words[-1]}") from error


def _serve(
    ray: Any, actor: Any, source: Source, pool: list[Any], batches: Sequence[Batch], sampling: Sampling
) -> Iterator[Record]:
    waiting = [(batch, 0) for batch in reversed(batches)]
    running: dict[Any, tuple[Any, Batch, int]] = {}  # by stream of records; a batch is what is left of it
    idle = list(pool)
    while waiting or running:
        while waiting and idle:
            worker, (batch, tries) = idle.pop(), waiting.pop()
            stream = worker.run.options(num_returns="streaming").remote(batch, sampling)
            running[stream] = worker, batch, tries + 1
        ready, _ = ray.wait(list(running), num_returns=1)
        worker, batch, tries = running.pop(ready[0])
        try:
            record = ray.get(next(ready[0]))
        except StopIteration:
            if batch.jobs:
                raise RuntimeError(f"{batch.cell.name}: {batch.jobs[0].key} came back without its chain") from None
            idle.append(worker)
            continue
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the model's or the cache's own error
        except ray.exceptions.RayError as error:
            if batch.jobs:
                if tries >= ATTEMPTS:
                    first, last = batch.jobs[0].key, batch.jobs[-1].key
                    raise RuntimeError(
                        f"{batch.cell.name}, {first} to {last}: its worker died {tries} times ({error})"
                    ) from error
                waiting.append((batch, tries))
            if waiting:
                idle.append(actor.remote(source))
            continue
        running[ready[0]] = worker, batch.without(record.item, record.sample), tries
        yield record
