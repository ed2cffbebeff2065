"""Studies in parts: what a shard makes, and the parts as one study again, equal to the one that was never split."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest
from accuracy import command, folder, task  # noqa: F401  (fixtures)

import reasonalloc as ra
from reasonalloc.cli import main
from reasonalloc.lab.evaluate.equal_bytes import FILE, Match, Try, keep, kept
from reasonalloc.lab.evaluate.merge import merge
from reasonalloc.lab.evaluate.records import Record, Records, pack, read
from reasonalloc.lab.evaluate.shard import Shard

pytest.importorskip("scipy")
pytest.importorskip("math_verify")
pytest.importorskip("matplotlib")

METHODS = ["--methods", "full,rkv,reasonalloc"]
SETTINGS = {"model": "owner/name", "task": "own", "seed": 0}


def chains(path):
    return {x.key: replace(x, seconds=0.0) for x in read(path)}


def figures(path):
    rows = json.loads(Path(path).read_text())["rows"]
    return {x["cell"]: {k: v for k, v in x.items() if k != "tokens_per_s"} for x in rows}


@pytest.mark.slow
def test_what_was_split_is_what_was_not(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Sampled, since chains of equal text would show little; a wave, which shards have to agree on."""
    monkeypatch.chdir(tmp_path)
    more = [*METHODS, "--samples", "2", "--temperature", "1.5"]
    assert main(command(folder, task, *more, output="whole")) == 0
    for shard in ("1/3", "2/3", "3/3"):
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["reasonalloc", "--shard", shard])
        assert main(command(folder, task, *more, "--shard", shard, "--json", "-", output="split")) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["shard"] == shard and told["chains"] > 0
    assert [x.name for x in sorted(Path("split").glob("wave-*.json"))] == [
        x.name for x in sorted(Path("whole").glob("wave-*.json"))
    ]
    assert not list(Path("split").glob("accuracy.*"))  # a part is no result
    own = [len(chains(f"split/shard-{i}-of-3/generations.jsonl")) for i in (1, 2, 3)]
    assert main(["study", "merge", "split", "--json", "-"]) == 0
    merged = json.loads(capsys.readouterr().out)["merged"]
    assert len(merged) == 1 and sum(merged[0]["chains"].values()) == sum(own) == 30 and not merged[0]["missing"]
    assert chains("split/generations.jsonl") == chains("whole/generations.jsonl")
    before = Path("split/generations.jsonl").read_bytes()
    assert main(command(folder, task, *more, output="split")) == 0
    assert Path("split/generations.jsonl").read_bytes() == before  # nothing was missing
    assert figures("split/accuracy.json") == figures("whole/accuracy.json")
    provenance = json.loads(Path("split/accuracy.json").read_text())["provenance"]
    assert [x["command"] for x in provenance["runs"]] == [f"reasonalloc --shard {i}/3" for i in (1, 2, 3)]
    assert main(["study", "merge", "split"]) == 0  # again: the same chains are taken once
    assert chains("split/generations.jsonl") == chains("whole/generations.jsonl")
    assert len(json.loads(Path("split/runs.json").read_text())) == 3


def test_a_shard_goes_on_and_says_what_it_is(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert main(command(folder, task, "--shard", "2/4", "--dry-run", "--json", "-")) == 0
    (told,) = json.loads(capsys.readouterr().out)["studies"]
    assert main(command(folder, task, "--shard", "2/4", "--pack")) == 0
    here = Path("out/shard-2-of-4")
    made = chains(here / "generations.jsonl")
    assert len(made) == told["chains"] and chains(here / "generations.jsonl.gz") == made
    lines = (here / "generations.jsonl").read_bytes().splitlines(keepends=True)
    (here / "generations.jsonl").write_bytes(b"".join(lines[:1]) + lines[1][:40])  # as a kill leaves it
    assert main(command(folder, task, "--shard", "2/4")) == 0
    assert {x[:2] for x in chains(here / "generations.jsonl")} == {x[:2] for x in made}
    for wrong in ("0/4", "5/4", "2", "2/0", "a/b"):
        assert main(command(folder, task, "--shard", wrong)) == 2
        assert "shard is I/N" in capsys.readouterr().err


def test_a_shard_that_gets_no_batch_says_why(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert main(command(folder, task, "--shard", "99/99")) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "there are fewer than 99: a smaller --batch-size helps" in told and "0 chains of shard 99/99" in told


def test_a_shard_makes_no_chain_that_the_study_has(folder, task, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert main(command(folder, task, "--shard", "1/2")) == 0
    assert main(["study", "merge", "out"]) == 0
    had = chains("out/generations.jsonl")
    capsys.readouterr()
    assert main(command(folder, task, "--shard", "1/1", "--dry-run", "--json", "-")) == 0
    (told,) = json.loads(capsys.readouterr().out)["studies"]
    assert main(command(folder, task, "--shard", "1/1")) == 0
    own = chains("out/shard-1-of-1/generations.jsonl")
    assert len(own) == told["chains"] > 0 and not {x[:2] for x in own} & {x[:2] for x in had}
    assert main(["study", "merge", "out"]) == 0
    assert len(chains("out/generations.jsonl")) == len(had) + len(own)
    assert main(command(folder, task, "--json", "-")) == 0  # none is missing
    settings = json.loads(Path("out/settings.json").read_text())
    Path("out/settings.json").write_text(json.dumps({**settings, "seed": 99}))
    assert main(command(folder, task, "--shard", "1/3")) == 2
    assert "other settings (seed 99, now" in capsys.readouterr().err


def record(**changes):
    base = Record(
        cell="rkv 64", config="c", asked="q", item="1", group="", sample=0, seed=0, prompt_tokens=3, tokens=9,
        finish="stop", text="so 1", answers=["1"], right=[True], budget=64, ratio=None, slots=5.0, mean_bytes=10.0,
        peak_bytes=20, seconds=1.0,
    )  # fmt: skip
    return replace(base, **changes)


def shard(path, *found, settings=SETTINGS, run=None):
    own = Records(path)
    own.open(settings)
    for x in found:
        own.add(x)
    own.add_run(run or {"command": "reasonalloc", "created": str(path.name)})
    own.close()
    return path


def everything(path):
    return {x.relative_to(path): x.read_bytes() for x in path.rglob("*") if x.is_file() and x.name != ".lock"}


def test_one_that_is_there_twice_is_taken_once(tmp_path):
    shard(tmp_path / "a", record(), record(item="2"))
    shard(tmp_path / "b", record(seconds=7.0), record(cell="full", budget=None))
    (found,) = merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert found.chains == {"rkv 64": 2, "full": 1} and found.again == 1
    assert list(read(tmp_path / "out/generations.jsonl")) == [
        record(), record(item="2"), record(cell="full", budget=None)
    ]  # fmt: skip
    assert json.loads((tmp_path / "out/settings.json").read_text()) == SETTINGS
    assert [x["created"] for x in json.loads((tmp_path / "out/runs.json").read_text())] == ["a", "b"]
    shard(tmp_path / "c", record(item="3"))
    merge(tmp_path / "out", [tmp_path / "c"])  # beside what is there
    assert len(list(read(tmp_path / "out/generations.jsonl"))) == 4


@pytest.mark.parametrize(
    ("second", "settings", "run", "message"),
    [
        (record(item="2"), {**SETTINGS, "seed": 1}, None, "b was made with other settings than .*: seed 1, not 0"),
        (record(item="2"), {**SETTINGS, "dtype": "x"}, None, "dtype 'x', not None"),
        (record(text="so 2", right=[False]), SETTINGS, None, "another chain than .*a of rkv 64, 1, .* in text, right"),
        (record(item="2", config="d"), SETTINGS, None, "the cell 'rkv 64' has other cache settings than in .*a"),
        (record(cell="full", asked="r"), SETTINGS, None, "the problem '1' has another text or other answers"),
        (record(item="2"), SETTINGS, {"created": "b", "revision": "222"}, "different revisions .*111; .*222"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together(tmp_path, second, settings, run, message):
    shard(tmp_path / "a", record(), run={"created": "a", "revision": "111"})
    shard(tmp_path / "b", second, settings=settings, run=run)
    shard(tmp_path / "out", record(item="9"))
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=message):
        merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match=message):
        merge(tmp_path / "new", [tmp_path / "a", tmp_path / "b"])
    assert everything(tmp_path) == before
    Records(tmp_path / "out").open(SETTINGS)  # nothing is left locked


def test_packed_chains_beside_an_empty_file_are_chains(tmp_path):
    """As a kill leaves them while they are unpacked."""
    shard(tmp_path / "shard-1-of-1", record())
    plain = tmp_path / "shard-1-of-1" / "generations.jsonl"
    pack(read(plain), plain.with_name("generations.jsonl.gz"))
    plain.write_bytes(b"")
    (merged,) = merge(tmp_path)
    assert sum(merged.chains.values()) == 1 and chains(tmp_path / "generations.jsonl")


def test_what_is_there_must_fit_too(tmp_path):
    shard(tmp_path / "out", record(text="other"))
    shard(tmp_path / "out/shard-1-of-2", record())
    with pytest.raises(ValueError, match=r"shard-1-of-2 has another chain than .*out of rkv 64"):
        merge(tmp_path / "out")


def test_budgets_of_equal_bytes_come_along(tmp_path):
    """Those that shards on two machines found; else the merged study would search again, maybe find others, and refuse
    its own chains."""
    found = {x: Match(f"{x} 64@rkv", 9.0, 70.0, 9.0, 0.02, (Try(70.0, 9.0),), x) for x in ("h2o", "snapkv")}
    shard(tmp_path / "a", record())
    shard(tmp_path / "b/shard-2-of-2", record(item="2"))
    keep(tmp_path / "a" / FILE, {"h2o": found["h2o"]})
    keep(tmp_path / "b" / FILE, found)
    merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert kept(tmp_path / "out" / FILE) == found
    keep(tmp_path / "a" / FILE, {"h2o": replace(found["h2o"], size=71.0)})
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"h2o 64@rkv takes equal bytes at 70, in a shard before it at 71"):
        merge(tmp_path / "new", [tmp_path / "a", tmp_path / "b"])
    assert everything(tmp_path) == before


def test_another_wave_is_another_study(tmp_path):
    for name, demand in (("a", (1.0, 2.0)), ("b", (1.0, 3.0))):
        shard(tmp_path / name, record(item=name))
        ra.WaveProfile(demand, (0, 1), {}).save(tmp_path / name / "wave-own-4-0.93.json")
    with pytest.raises(ValueError, match=r"b/wave-own.* is another wave than .*a/wave-own"):
        merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b/wave-own-4-0.93.json").write_bytes((tmp_path / "a/wave-own-4-0.93.json").read_bytes())
    merge(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert ra.WaveProfile.load(tmp_path / "out/wave-own-4-0.93.json").demand == (1.0, 2.0)


def test_shards_of_several_studies_go_to_their_places(tmp_path, capsys):
    root = tmp_path / "paper"
    for task_, count in (("math500", 2), ("aime24", 12)):
        for i in (1, 2, 10):
            if i <= count:
                shard(root / "raw" / task_ / f"shard-{i}-of-{count}", record(item=f"{task_}/{i}"))
    found = merge(root)
    assert [(x.folder.relative_to(root), sum(x.chains.values())) for x in found] == [
        (Path("raw/aime24"), 3), (Path("raw/math500"), 2)
    ]  # fmt: skip
    assert [x.item for x in read(root / "raw/aime24/generations.jsonl")] == ["aime24/1", "aime24/2", "aime24/10"]
    assert not found[1].missing and found[0].missing[:2] == ["shard-3-of-12", "shard-4-of-12"]
    assert main(["study", "merge", str(root)]) == 0
    assert "warning: shard-3-of-12 is not there" in capsys.readouterr().out
    elsewhere = [root / f"raw/math500/shard-{i}-of-2" for i in (1, 2)]
    assert merge(tmp_path / "other", elsewhere)[0].folder == tmp_path / "other"


def test_where_there_is_nothing_or_somebody_writes(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["study", "merge", str(tmp_path / "out"), str(tmp_path / "empty")]) == 2
    assert "empty has no chains of a shard" in capsys.readouterr().err
    own = Records(shard(tmp_path / "a", record()))
    own.open(SETTINGS)
    with pytest.raises(ValueError, match=r"another run writes to .*a: merge when it has ended"):
        merge(tmp_path / "out", [tmp_path / "a"])
    own.close()
    with (tmp_path / "a/generations.jsonl").open("ab") as file:
        file.write(b'{"cell": "torn')
    before = (tmp_path / "a/generations.jsonl").read_bytes()
    merge(tmp_path / "out", [tmp_path / "a"])
    assert [x.item for x in read(tmp_path / "out/generations.jsonl")] == ["1"]
    assert (tmp_path / "a/generations.jsonl").read_bytes() == before  # shards are only read
    with (tmp_path / "out/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another run writes to .*out"):
            merge(tmp_path / "out", [tmp_path / "a"])


def test_every_chain_is_in_one_shard():
    from reasonalloc.lab.evaluate.accuracy import Cell, plan
    from reasonalloc.lab.tasks import Item

    items = [Item(str(i), "p", ("1",), "ab"[i % 2]) for i in range(11)]
    cells = [Cell("full", ra.Config("full")), Cell("rkv 64", ra.Config("rkv", budget=64))]
    whole = plan(items, cells, 2, 4)
    parts = [Shard(i, 3).of(whole) for i in (1, 2, 3)]
    assert sorted((x for part in parts for x in part), key=whole.index) == whole  # whole batches, each once
    first = parts[0][0]
    done = {(first.cell.name, job.item.id, job.sample) for job in first.jobs[1:]}
    again = Shard(1, 3).of(whole, done)
    assert again[0].jobs == first.jobs[:1] and again[1:] == parts[0][1:]
    assert Shard(3, 3).of(whole[:2]) == []


def test_a_revision_reaches_the_hub_and_the_runs(monkeypatch):
    import transformers
    from models import build as tiny

    from reasonalloc.lab import models
    from reasonalloc.provenance import place

    asked = []

    def model(source, **options):
        asked.append((source, options.get("revision")))
        found = tiny("llama")
        found.config._commit_hash = "abc"
        return found

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda source, **x: asked.append((source, x.get("revision")))
    )
    config = tiny("llama").config
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda source, **x: asked.append((source, x)) or config
    )
    found, _, label = models.load("owner/Name-8B@v1.0")
    assert asked == [("owner/Name-8B", "v1.0")] * 2 and label == "owner/Name-8B@v1.0"
    assert place(found)["revision"] == "abc" and "revision" not in place(tiny("llama"))
    models.load("owner/Name-8B")
    models.shape("owner/Name-8B@v1.0")
    assert asked[2:] == [("owner/Name-8B", None)] * 2 + [("owner/Name-8B", {"revision": "v1.0"})]
    names = ("owner/Name-8B@refs/pr/1", "owner/Name-8B:ungrouped", "owner/Name-8B@v1:ungrouped", "/a/Name-8B/")
    assert {models.bare(x) for x in names} == {"Name-8B"} and models.bare(None) == ""
