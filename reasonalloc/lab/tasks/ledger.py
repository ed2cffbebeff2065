"""The task "ledger": who owns how many, stated in any order; its chains repeat, plan and doubt as much as one asks for.

A problem states what each person owns, most of it relative to somebody else ("Leo has twice as many as Kim."), then
asks about some of them. Its reference chain takes the questions in order: it walks back to what is known, works forward
and boxes the answer. Dials say how much a chain repeats itself; the prompt names three of them, so that a trained model
can be asked for it. Everything follows from (seed, index, dials).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

# Each a single token of SmolLM2's vocabulary after a space.
NAMES = tuple(
    [
        "Ben",
        "Tom",
        "Sam",
        "Max",
        "Kim",
        "Dan",
        "Ray",
        "Rob",
        "Val",
        "Pat",
        "Hal",
        "Jan",
        "Lou",
        "Bob",
        "Cal",
        "Don",
        "Adam",
        "Alex",
        "Alice",
        "Anna",
        "Anne",
        "Arthur",
        "Bill",
        "Carl",
        "Charles",
        "Chris",
        "David",
        "Donald",
        "Edward",
        "Emily",
        "Frank",
        "Fred",
        "George",
        "Greg",
        "Henry",
        "Jack",
        "James",
        "Jane",
        "Jean",
        "Jeff",
        "Jim",
        "John",
        "Ken",
        "Lily",
        "Louis",
        "Luke",
        "Maria",
        "Mark",
        "Martin",
        "Mary",
        "Matt",
        "Michael",
        "Neil",
        "Nick",
        "Paul",
        "Peter",
        "Phil",
        "Rose",
        "Sarah",
        "Scott",
        "Simon",
        "Tim",
        "Victor",
        "William",
    ]
)
THINGS = ("coins", "marbles", "books", "stamps", "apples", "cards", "shells", "pens")
MOST = 60  # owned by one person: what is hard should be finding facts, not sums

# Planning talk. A chain goes through it in this order, again and again: which sentence follows is then no guess.
FILLER = (
    "Okay, let me think about what comes next.",
    "I should go step by step and not rush.",
    "Let me keep track of what I have found.",
    "This looks fine, so I can go on.",
    "I want to be careful with the numbers here.",
    "Good, that fits with what was said.",
    "Now, where was I? Right, the next step.",
    "It helps to write everything down.",
    "So that part is clear to me now.",
    "Hmm, let me look at the next one.",
)


# How the prompt names the dials that the chain's style follows: words of their own, as digits are mixed up.
STYLE = {
    "restate": ("values only", "restate facts", "summarize often"),
    "doubt": ("trusting", "checking", "doubting"),
    "filler": ("silent", "talking", "chatty"),
}


@dataclass(frozen=True)
class Dials:
    """What a problem asks for and how its chain talks.

    questions: 1 to 8. depth: people found anew for each question, 1 to 12. distractors: people nobody asks about.
    restate: 0 only values while working forward, 1 each fact again, 2 also all values known so far after each question.
    doubt: 0 none, 1 each result is checked, 2 also a wrong turn that is taken back and a second derivation.
    filler: 0 none, 1 planning talk around each question, 2 after each step.
    """

    questions: int = 1
    depth: int = 4
    distractors: int = 4
    restate: int = 1
    doubt: int = 0
    filler: int = 0

    def __post_init__(self) -> None:
        bounds = {"questions": (1, 8), "depth": (1, 12), "distractors": (0, 32)}
        for item in fields(self):
            low, high = bounds.get(item.name, (0, 2))
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{item.name} must be a whole number from {low} to {high}, got {value!r}")
        if self.people > len(NAMES):
            raise ValueError(
                f"questions x (depth + 1) + distractors must be at most {len(NAMES)} people, got {self.people}"
            )

    @property
    def style(self) -> str:
        """The dials that the chain's style follows, in words."""
        return ", ".join(words[getattr(self, name)] for name, words in STYLE.items())

    @property
    def people(self) -> int:
        """The most people that a problem may need."""
        return self.questions * (self.depth + 1) + self.distractors


# What a model is judged on unless others are asked for: chains of about 300 to 4,000 tokens.
GRID = {
    "plain": Dials(questions=2, depth=4, distractors=4, restate=1, doubt=0, filler=0),
    "restated": Dials(questions=4, depth=4, distractors=6, restate=2, doubt=0, filler=0),
    "doubting": Dials(questions=4, depth=3, distractors=6, restate=1, doubt=2, filler=0),
    "wordy": Dials(questions=4, depth=4, distractors=6, restate=1, doubt=1, filler=2),
    "long": Dials(questions=6, depth=3, distractors=8, restate=2, doubt=2, filler=1),
    "longest": Dials(questions=6, depth=3, distractors=8, restate=2, doubt=2, filler=2),
}


@dataclass(frozen=True)
class Fact:
    """What is said about one person: a number (`base` None), or more, fewer or twice as many as `base`."""

    name: str
    value: int
    base: str | None = None
    kind: str = ""
    by: int = 0

    def sentence(self, thing: str = "") -> str:
        things = f" {thing}" if thing else ""
        if self.base is None:
            return f"{self.name} has {self.value}{things}"
        if self.kind == "twice":
            return f"{self.name} has twice as many{things} as {self.base}"
        return f"{self.name} has {self.by} {self.kind}{things} than {self.base}"

    def sum(self, base: int) -> str:
        return {"more": f"{base} + {self.by}", "fewer": f"{base} - {self.by}", "twice": f"2 * {base}"}[self.kind]

    def step(self, base: int, restate: bool) -> str:
        """How a chain comes to this value from what `base` has, with or without the facts."""
        sum_ = f"{self.sum(base)} = {self.value}."
        return f"{self.base} has {base}. {self.sentence()}, so {sum_}" if restate else f"{self.name} has {sum_}"


@dataclass(frozen=True)
class Ledger:
    """One problem: the prompt's text, who is asked about, their answers, the reference chain."""

    id: str
    prompt: str
    asked: tuple[str, ...]
    answers: tuple[int, ...]
    chain: str
    dials: Dials


def problem(seed: int | str, index: int, dials: Dials) -> Ledger:
    """The problem with this index of a seed."""
    key = f"ledger/{seed}/{index}/" + "/".join(str(x) for x in asdict(dials).values())
    rng = random.Random(key)
    names = rng.sample(NAMES, len(NAMES))
    facts: dict[str, Fact] = {}
    asked: list[str] = []
    for _ in range(dials.questions):
        # Each question hangs on a person met before or on a fresh one, and adds `depth` people.
        base = rng.choice(list(facts)) if asked and rng.random() < 0.6 else _given(rng, names.pop(), facts)
        for _ in range(dials.depth):
            base = _relative(rng, names.pop(), base, facts)
        asked.append(base)
    needed = set(facts)
    for _ in range(dials.distractors):
        if rng.random() < 0.25:
            _given(rng, names.pop(), facts)
        else:
            _relative(rng, names.pop(), rng.choice(list(facts)), facts)
    thing = rng.choice(THINGS)
    order = rng.sample(list(facts), len(facts))
    text = " ".join(facts[name].sentence(thing if i == 0 else "") + "." for i, name in enumerate(order))
    listed = ", ".join(asked)
    prompt = f"{text}\nHow many {thing} has each of: {listed}?\nStyle: {dials.style}."
    chain = _Chain(facts, dials, rng, sorted(needed)).text(asked)
    return Ledger(key, prompt, tuple(asked), tuple(facts[name].value for name in asked), chain, dials)


def problems(count: int, seed: int | str, dials: Dials) -> Iterator[Ledger]:
    """`count` problems of a seed; a larger count begins with the same ones."""
    return (problem(seed, i, dials) for i in range(count))


def _given(rng: random.Random, name: str, facts: dict[str, Fact]) -> str:
    facts[name] = Fact(name, rng.randint(3, 30))
    return name


def _relative(rng: random.Random, name: str, base: str, facts: dict[str, Fact]) -> str:
    facts[name] = relative(rng, name, base, facts[base].value)
    return name


def relative(rng: random.Random, name: str, base: str, value: int) -> Fact:
    """A fact about `name`, drawn relative to `base`, who has `value`."""
    by = rng.randint(2, 9)
    found = {"more": value + by, "fewer": value - by, "twice": 2 * value}
    kind = rng.choice([k for k, x in found.items() if 2 <= x <= MOST])
    return Fact(name, found[kind], base, kind, 2 if kind == "twice" else by)


class _Chain:
    """Writes the reference chain. Names always follow a space: they are then the same tokens everywhere."""

    def __init__(self, facts: dict[str, Fact], dials: Dials, rng: random.Random, others: list[str]) -> None:
        self.facts, self.dials, self.rng, self.others = facts, dials, rng, others
        self.values: dict[str, int] = {}
        self.talk = 0
        self.out: list[str] = []

    def text(self, asked: list[str]) -> str:
        for i, name in enumerate(asked, 1):
            self._question(i, name)
        return "".join(self.out)

    def _say(self, text: str, filler: int = 3, end: str = "") -> None:
        """A sentence, then planning talk if the dial is at least `filler`."""
        self.out.append(text)
        if self.dials.filler >= filler:
            self.out.append(" " + FILLER[self.talk % len(FILLER)])
            self.talk += 1
        self.out.append(end)

    def _question(self, number: int, name: str) -> None:
        start = "" if number == 1 else "\n"
        # The style again: what follows from it is then decided by the words right before.
        self._say(f"{start}Question {number}: {name} ({self.dials.style}).", filler=1, end="\n")
        way = self._walk(name)
        self._forward(way)
        if self.dials.doubt:
            self._check(way)
        if self.dials.doubt == 2:
            self._say("Let me go over it once more.", filler=1)
            self._derive(way, restate=True)
            self._say(" Yes, the same.", filler=2, end="\n")
        if self.dials.restate == 2:
            so_far = ", ".join(f"{k} {v}" for k, v in self.values.items())
            self._say(f"So far: {so_far}.", end="\n")
        self._say(f"Answer {number}: {name} has \\boxed{{{self.values[name]}}}.")

    def _walk(self, name: str) -> list[Fact]:
        """Back from a person to one whose value is known; the facts in the order of working forward."""
        way: list[Fact] = []
        self.out.append("Back:")
        while name not in self.values and self.facts[name].base is not None:
            fact = self.facts[name]
            if self.dials.doubt == 2 and not way:
                wrong = self.rng.choice([x for x in self.others if x not in (name, fact.base)] or [name])
                self.out.append(f" Do I need {wrong}? No, wait.")
            self._say(f" {fact.sentence()}, so I need {fact.base}.", filler=2)
            way.append(fact)
            name = fact.base or ""
        if name in self.values:
            self._say(f" {name} has {self.values[name]}, I found that.", filler=2, end="\n")
        else:
            self.values[name] = self.facts[name].value
            self._say(f" {self.facts[name].sentence()}, that is given.", filler=2, end="\n")
        return way[::-1]

    def _forward(self, way: list[Fact]) -> None:
        self._say("Forward:", filler=1)
        self._derive(way, restate=self.dials.restate >= 1)
        self.out.append("\n")
        for fact in way:
            self.values[fact.name] = fact.value

    def _derive(self, way: list[Fact], restate: bool) -> None:
        for fact in way:
            self._say(" " + fact.step(self.facts[fact.base or ""].value, restate), filler=2)

    def _check(self, way: list[Fact]) -> None:
        self._say("Wait, let me check that again.", filler=1)
        self._derive(way, restate=False)
        self._say(" That is right.", filler=2, end="\n")
