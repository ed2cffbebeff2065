"""Accuracy on Ray: the same chains; workers that die."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from accuracy import ITEMS, command, elsewhere, folder, record, task, texts  # noqa: F401  (fixtures)

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.hf.decode import Sampling
from reasonalloc.lab.evaluate.accuracy import Cell, cells, plan, run_batch
from reasonalloc.lab.evaluate.workers import Source, run_on_ray
from reasonalloc.lab.tasks import Item

pytest.importorskip("scipy")
pytest.importorskip("math_verify")


@pytest.mark.slow
def test_ray_gives_the_same(folder, task, capsys):  # noqa: F811
    pytest.importorskip("ray")
    assert main(command(folder, task)) == 0
    assert main([*command(folder, task, output="ray"), "--ray", "--workers", "2"]) == 0
    assert texts("ray") == texts("out")
    with_wave = ["--methods", "reasonalloc", "--ray"]  # which an actor measures too
    assert main([*command(folder, task, output="ray"), *with_wave, "--device-map", "cuda"]) == 2
    for methods in (["--methods", "rkv"], with_wave[:2]):  # with and without a wave, which is measured first
        assert main([*command(folder, task, output="none"), *methods, "--ray", "--gpus", "1000"]) == 2
        assert "fewer --threads or --gpus fit" in capsys.readouterr().err
    assert main([*command(folder, task, output="ray"), *with_wave]) == 0
    assert main([*command(folder, task), *with_wave[:2]]) == 0
    assert texts("ray") == texts("out")
    assert [x["devices"] for x in json.loads(Path("ray/runs.json").read_text())] == [["cpu"], ["cpu"]]


@pytest.mark.slow
def test_a_killed_worker_is_replaced(folder, task):  # noqa: F811
    ray = pytest.importorskip("ray")
    sampling = Sampling(max_new_tokens=30)
    small = cells(["rkv"], [24], [], {"interval": 8})
    batches = plan(ITEMS, small, 1, 2)
    pids = []

    def kill(actors):
        ray.kill(actors[0], no_restart=True)
        pids.append(len(actors))

    found = {x.key: x.text for x in run_on_ray(Source(folder), batches, sampling, workers=2, started=kill)}
    assert pids == [2]
    model, tokenizer, _ = Source(folder).load()
    local = {x.key: x.text for b in batches for x in run_batch(model, tokenizer, b, sampling)}
    assert found == local and len(found) == 5


@pytest.mark.slow
def test_what_a_worker_had_finished_is_not_made_again(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from reasonalloc.lab.evaluate import workers

    made = record("rkv 24", "0", 2)

    class Slow:
        """Gives one chain, then waits; the next one of its kind gives the rest."""

        def __init__(self, source):
            pass

        def ready(self, sampling, prompts):
            return {}, {}

        def run(self, batch, sampling):
            seen = tmp_path / "seen"
            first = not seen.exists()
            with seen.open("a") as file:
                file.write(" ".join(x.item.id for x in batch.jobs) + "\n")
            for job in batch.jobs:
                yield replace(made, item=job.item.id)
                time.sleep(300 if first else 0)

    monkeypatch.setattr(workers, "Worker", Slow)
    batches = plan([Item(f"{i}", "", ("1",)) for i in range(3)], [Cell("rkv 24", ra.Config(budget=24))], 1, 3)
    pool, found = [], []
    for each in workers.run_on_ray(Source(None), batches, Sampling(), workers=1, started=pool.extend):
        if not found:
            ray.kill(pool[0], no_restart=True)
        found.append(each.item)
    assert found == ["0", "1", "2"]
    assert (tmp_path / "seen").read_text().splitlines() == ["0 1 2", "1 2"]


@pytest.mark.slow
def test_an_error_of_the_model_is_raised_as_it_is(folder):  # noqa: F811
    pytest.importorskip("ray")
    empty = [Item("empty", "", ("1",))]
    batches = plan(empty, cells(["rkv"], [24], [], {}), 1, 2)
    with pytest.raises(ValueError, match="no token"):
        list(run_on_ray(Source(folder), batches, Sampling(max_new_tokens=3), workers=1))
