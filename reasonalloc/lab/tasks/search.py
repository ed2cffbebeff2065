"""The task "search": which of the numbers add up to the target, found by trying.

Numbers stand in falling order; exactly one choice of them has the sum. The reference chain searches depth first: it
takes the next number that fits off what is still needed, after those that are larger ("3: 46 - 71 > 56 > 11 = 35", at
depth 3), and where none fits ("4: 5 - 11 >") it puts the last one back ("3: 35 + 11 = 46") and goes on behind it. So
the newest line that takes a number at a depth is the live one: what was written below a number that was put back is of
no more use. `Search.dies` says of each line when that is, which gives the share of slots spent on dead branches and the
eviction that loses nothing. Everything follows from (seed, index, size).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from reasonalloc.lab.problems import Problem
from reasonalloc.lab.tasks.base import Choice, Item, Task

HELD_OUT = "test"  # first word of the seeds that no reasoner was trained on
LEAST, MOST = 11, 99  # of a number
_TRIES = 20_000


@dataclass(frozen=True)
class Size:
    """numbers: to choose from, 6 to 20. lines: the fewest and the most of the search, 4 to 2000."""

    numbers: int = 10
    lines: tuple[int, int] = (60, 140)

    def __post_init__(self) -> None:
        low, high = self.lines
        if not 6 <= self.numbers <= 20 or not 4 <= low <= high <= 2000:
            raise ValueError(
                f"a search has 6 to 20 numbers and 4 to 2000 lines, got {self.numbers} and {low} to {high}"
            )


GRID = {
    "short": Size(8, (10, 40)),
    "middle": Size(10, (60, 140)),
    "long": Size(12, (130, 240)),
}


@dataclass(frozen=True)
class Search:
    """One problem. answer: the numbers that have the sum, falling. chain: its lines, the last of which boxes them.

    dies: of each line the number of lines that are written when it is of no more use; the chain's for a live one.
    """

    id: str
    prompt: str
    answer: tuple[int, ...]
    lines: tuple[str, ...]
    dies: tuple[int, ...]

    @property
    def chain(self) -> str:
        return "\n".join(self.lines)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where each line begins and ends in the chain, its newline with it."""
        found, begin = [], 0
        for line in self.lines:
            found.append((begin, begin + len(line) + 1))
            begin = found[-1][1]
        return found


def problem(seed: int | str, index: int, size: Size) -> Search:
    """The same for the same arguments; ValueError where searches of that size are hardly ever so long or short."""
    rng = random.Random(f"search/{seed}/{index}/{size.numbers}/{size.lines}")
    for _ in range(_TRIES):
        numbers = sorted(rng.sample(range(LEAST, MOST + 1), size.numbers), reverse=True)
        chosen = sorted(rng.sample(numbers, rng.randint(3, size.numbers // 2)), reverse=True)
        target = sum(chosen)
        if ways(numbers, target) != 1:
            continue
        lines, dies = searched(numbers, target)
        if size.lines[0] <= len(lines) - 1 <= size.lines[1]:
            break
    else:
        low, high = size.lines
        raise ValueError(f"of {_TRIES} searches among {size.numbers} numbers none had {low} to {high} lines")
    text = (
        f"Which of these numbers add up to {target}?\n{' '.join(map(str, numbers))}\n"
        "Try them in order, and put each number of the answer within \\boxed{}."
    )
    return Search(f"search-{seed}-{index}", text, tuple(chosen), tuple(lines), tuple(dies))


def ways(numbers: Sequence[int], target: int) -> int:
    """How many choices of the numbers have the sum."""
    # The counts of all sums lie in one whole number, so many bits each: a shift and an addition update them.
    bits = len(numbers) + 1
    counts = 1
    for x in numbers:
        counts += counts << x * bits
    return counts >> target * bits & ((1 << bits) - 1)


def searched(numbers: Sequence[int], target: int) -> tuple[list[str], list[int]]:
    """(lines, dies) of the search for the first choice of the numbers, which fall, that has the sum."""
    lines: list[str] = []
    dies: dict[int, int] = {}
    path: list[tuple[int, int]] = []  # (place among the numbers, line) of those that are taken
    need, begin = target, 0
    while need:
        larger = [x for x in numbers[begin:] if x > need]
        tried = "".join(f"{x} > " for x in larger)
        place = begin + len(larger)
        if place < len(numbers):
            path.append((place, len(lines)))
            rest = need - numbers[place]
            lines.append(f"{len(path)}: {need} - {tried}{numbers[place]} = {rest}")
        else:
            if not path:
                raise ValueError(f"no choice of {list(numbers)} adds up to {target}")
            if larger:
                dies[len(lines)] = len(lines) + 2  # the next line says what is left of it
                lines.append(f"{len(path) + 1}: {need} - {tried.rstrip()}")
            place, taken = path.pop()
            rest = need + numbers[place]
            dies[taken], dies[len(lines)] = len(lines) + 1, len(lines) + 2
            lines.append(f"{len(path) + 1}: {need} + {numbers[place]} = {rest}")
        need, begin = rest, place + 1
    lines.append("Found: " + " + ".join(f"\\boxed{{{numbers[place]}}}" for place, _ in path))
    return lines, [min(dies.get(i, len(lines)), len(lines)) for i in range(len(lines))]


_MOVE = re.compile(r"(\d+): \d+ (?:-(?: \d+ >)* \d+ (?P<take>=) -?\d+|\+ \d+ (?P<back>=) -?\d+|-(?: \d+ >)+)")


def deaths(lines: Sequence[str]) -> list[int]:
    """Of each line how many lines are written when it is of no more use, as `Search.dies`, for any chain of the form.

    A number that is taken dies when one is taken or put back at its depth or above; a line that puts one back, or says
    that none fits, with the next line. A line of another form, as a model may write, stays of use.
    """
    found = [len(lines)] * len(lines)
    path: list[tuple[int, int]] = []  # (depth, line) of numbers that are taken
    for i, line in enumerate(lines):
        move = _MOVE.fullmatch(line.rstrip("\n"))
        if move is None:
            continue
        if not move["take"]:
            found[i] = min(i + 2, len(lines))
        if move["take"] or move["back"]:
            while path and path[-1][0] >= int(move[1]):
                found[path.pop()[1]] = i + 1
        if move["take"]:
            path.append((int(move[1]), i))
    return found


def size_of(setting: str) -> Size:
    """A name of the grid, or like "numbers=9,lines=40-80"."""
    if setting in GRID:
        return GRID[setting]
    values: dict[str, str] = dict.fromkeys(("numbers", "lines"), "")
    for part in setting.split(","):
        name, sign, value = part.strip().partition("=")
        if not sign or name not in values:
            raise ValueError(f"setting {setting!r} is none of {', '.join(GRID)} and not like 'numbers=9,lines=40-80'")
        values[name] = value
    low, dash, high = values["lines"].partition("-")
    if not values["numbers"].isdecimal() or not low.isdecimal() or (dash and not high.isdecimal()):
        raise ValueError(f"setting {setting!r} is not like 'numbers=9,lines=40-80'")
    return Size(int(values["numbers"]), (int(low), int(high or low)))


def _items(choice: Choice) -> list[Item]:
    found = []
    for setting in dict.fromkeys(choice.settings or GRID):
        size = size_of(setting)
        for i in range(choice.count or 8):
            made = problem(f"{HELD_OUT}/{choice.seed}", i, size)
            answers = tuple(map(str, made.answer))
            name = f"search/{setting}/{choice.seed}/{i}"
            found.append(Item(name, made.prompt, answers, setting, chain=made.chain))
    return found


def _prompts(count: int, seed: int) -> list[Problem]:
    """Through the sizes of the grid in turn."""
    grid = list(GRID.values())
    made = [problem(seed, i, grid[i % len(grid)]) for i in range(count)]
    return [Problem(x.id, x.prompt, ", ".join(map(str, x.answer)), "search", 0) for x in made]


TASK = Task("search", _prompts, _items, made=True, transfers=False)
