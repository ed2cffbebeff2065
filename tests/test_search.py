"""The task "search": its chains are the search that they say, and what is dead in them is of no use to the rest."""

import itertools
import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import SMOL_FILE, smol_directory
from transformers import AutoTokenizer

from reasonalloc.lab.evaluate.grading import grade
from reasonalloc.lab.models import missing_for_embedded
from reasonalloc.lab.tasks import items
from reasonalloc.lab.tasks.search import GRID, HELD_OUT, LEAST, MOST, Size, deaths, problem, searched, size_of, ways

TRAINING = Path(__file__).parents[1] / "training"
sys.path.insert(0, str(TRAINING))
SMALL = Size(8, (6, 60))
LINE = re.compile(r"(\d+): (\d+) ([-+]) (?:\d+ > )*(\d+) = (\d+)")
NONE_FITS = re.compile(r"(\d+): (\d+) - (?:\d+ >(?: |$))+")
LARGER = re.compile(r"(\d+) >")


def parts(text):
    target = int(re.search(r"add up to (\d+)\?", text)[1])
    return target, [int(x) for x in text.split("\n")[1].split()]


@pytest.mark.parametrize("index", range(30))
def test_a_problem_and_its_only_answer(index):
    made = problem("test", index, SMALL)
    target, numbers = parts(made.prompt)
    every = [c for k in range(9) for c in itertools.combinations(numbers, k) if sum(c) == target]
    assert every == [made.answer] and ways(numbers, target) == 1
    assert numbers == sorted(set(numbers), reverse=True) and numbers[-1] >= LEAST and numbers[0] <= MOST
    assert 6 <= len(made.lines) - 1 <= 60
    assert made == problem("test", index, SMALL) != problem("test", index + 100, SMALL)


@pytest.mark.parametrize("index", range(20))
def test_a_chain_goes_through_what_fits_in_order(index):
    """Read line by line: every sum is right, no number that fits is passed over, nothing is tried twice."""
    made = problem("test", index, SMALL)
    target, numbers = parts(made.prompt)
    path, need, begin = [], target, 0
    for line, then in itertools.pairwise(made.lines):
        larger = [int(x) for x in LARGER.findall(line)]
        assert larger == [x for x in numbers[begin:] if x > need] or " + " in line
        if found := NONE_FITS.fullmatch(line):
            assert int(found[1]) == len(path) + 1 and int(found[2]) == need and larger == numbers[begin:]
            assert " + " in then
            continue
        depth, before, sign, number, rest = LINE.fullmatch(line).groups()
        fits = [x for x in numbers[begin:] if x <= need]
        assert int(before) == need
        if sign == "-":
            assert int(number) == fits[0] and int(depth) == len(path) + 1
            path.append(int(number))
            need -= int(number)
        else:
            assert not fits and need > 0 and int(number) == path.pop() and int(depth) == len(path) + 1
            need += int(number)
        assert int(rest) == need == target - sum(path)
        begin = numbers.index(int(number)) + 1
    assert need == 0 and tuple(path) == made.answer
    graded = grade(made.chain, tuple(map(str, made.answer)), ())
    assert all(graded.right)


@pytest.mark.parametrize("index", range(20))
def test_what_is_live_is_enough(index):
    """Whatever line comes next, the live lines and the prompt say it: dead ones may be forgotten."""
    made = problem("test", index, SMALL)
    _, numbers = parts(made.prompt)
    target = parts(made.prompt)[0]
    for written in range(len(made.lines)):
        live = [line for i, line in enumerate(made.lines[:written]) if made.dies[i] > written]
        path, need, begin, said = [], target, 0, False
        for line in live:
            if said := bool(NONE_FITS.fullmatch(line)):
                continue
            _, _, sign, number, rest = LINE.fullmatch(line).groups()
            need, begin = int(rest), numbers.index(int(number)) + 1
            if sign == "-":
                path.append(int(number))
        expected, _ = searched_from(numbers, path, need, begin, said)
        assert made.lines[written] == expected
    taken = [i for i, line in enumerate(made.lines[:-1]) if made.dies[i] == len(made.lines)]
    assert [int(LINE.fullmatch(made.lines[i])[4]) for i in taken if " - " in made.lines[i]] == list(made.answer)
    for begin, end in made.spans[:-1]:
        assert made.chain[begin:end].endswith("\n") and "\n" not in made.chain[begin : end - 1]


@pytest.mark.parametrize("index", range(20))
def test_deaths_are_read_off_the_lines(index):
    made = problem("test", index, SMALL)
    assert tuple(deaths(made.lines)) == made.dies


def test_deaths_in_what_a_model_may_write():
    lines = ["1: 80 - 50 = 30", "2: 30 - 40 >", "2: 30 - 40 > 20 = 10", "Hm.", "1: 80 - 40 = 40", "1: 40 + 40 = 80"]
    assert deaths(lines) == [5, 3, 5, 6, 6, 6]  # a number taken at depth 1 again leaves all that was below the last one
    assert deaths([]) == []


def searched_from(numbers, path, need, begin, said):
    if not need:
        return "Found: " + " + ".join(f"\\boxed{{{x}}}" for x in path), True
    fits = [x for x in numbers[begin:] if x <= need]
    larger = [x for x in numbers[begin:] if x > need]
    tried = "".join(f"{x} > " for x in larger)
    if fits:
        return f"{len(path) + 1}: {need} - {tried}{fits[0]} = {need - fits[0]}", False
    if larger and not said:
        return f"{len(path) + 1}: {need} - {tried.rstrip()}", False
    return f"{len(path)}: {need} + {path[-1]} = {need + path[-1]}", False


@given(st.sets(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 90))
def test_ways_and_the_search_agree(numbers, target):
    falling = sorted(numbers, reverse=True)
    every = [c for k in range(9) for c in itertools.combinations(falling, k) if sum(c) == target]
    assert ways(falling, target) == len(every)
    if every:
        lines, dies = searched(falling, target)
        found = [int(x) for x in re.findall(r"\\boxed\{(\d+)\}", lines[-1])]
        assert tuple(found) in every and len(dies) == len(lines)
    else:
        with pytest.raises(ValueError, match="no choice of"):
            searched(falling, target)


def test_settings_and_items():
    assert [x.group for x in items("search", count=2)] == ["short", "short", "middle", "middle", "long", "long"]
    one = items("search", count=3, settings=["numbers=7,lines=8-20"], seed=5)
    assert len({x.hash for x in one}) == 3 and one == items(
        "search", count=3, settings=["numbers=7,lines=8-20"], seed=5
    )
    assert size_of("numbers=7,lines=9") == Size(7, (9, 9)) and size_of("long") is GRID["long"]
    for bad in ("nosuch", "numbers=7", "numbers=x,lines=3", "numbers=7,lines=9-x", "numbers=5,lines=9-10"):
        with pytest.raises(ValueError, match=r"setting|a search has"):
            size_of(bad)
    with pytest.raises(ValueError, match="of 20000 searches among 6 numbers none had 900 to 1000 lines"):
        problem("test", 0, Size(6, (900, 1000)))
    for size in GRID.values():
        assert size.lines[0] <= len(problem("test", 0, size).lines) - 1 <= size.lines[1]


@pytest.mark.skipif(bool(missing_for_embedded()), reason="the embedded model is not installed")
def test_held_out_searches_are_not_trained_on(monkeypatch):
    """No prompt of any step of the runs that led to search-135m, made again, is a prompt that is judged."""
    batches, train = pytest.importorskip("batches"), pytest.importorskip("train")
    assert batches.SPLIT != HELD_OUT
    judged = {x.prompt for k in GRID for seed in range(3) for x in items("search", count=100, seed=seed, settings=[k])}
    tokenizer = AutoTokenizer.from_pretrained(smol_directory(), gguf_file=SMOL_FILE)
    trained: set[str] = set()
    encode = batches.encode
    monkeypatch.setattr(batches, "encode", lambda t, x: trained.add(x.prompt) or encode(t, x))
    as_logged = 0
    for log in sorted((TRAINING / "runs").glob("search-*/log.jsonl")):
        given_ = json.loads(log.with_name("settings.json").read_text())
        settings = train.Settings(**{x.name: given_[x.name] for x in fields(train.Settings) if x.name in given_})
        make, seen = train.maker(settings, tokenizer), 0
        for step in map(json.loads, log.read_text().splitlines()):
            made = make(*next(train.lengths(settings, train.State(step["step"] - 1, seen))))
            seen = step["seen"]
            as_logged += made.inputs.shape == (step["rows"], step["length"])
    assert len(judged) == 300 * len(GRID) and len(trained) > 4500
    assert as_logged > 1200  # the first two runs had another form of line
    assert not judged & trained
