"""The task "document": questions on a long text. Answers are in free words, so it has no items."""

from __future__ import annotations

import random

from reasonalloc.lab.problems import Problem
from reasonalloc.lab.tasks.base import Task
from reasonalloc.lab.tasks.texts import rows

TITLE = "The Almanac of Marlow Reach"


def _prompts(count: int, seed: int) -> list[Problem]:
    """A text of twelve sections, in an order of its own for each prompt, with a question on one of them."""
    sections = rows("document")
    questions = random.Random(f"document/{seed}").sample(sections, len(sections))
    made = []
    for i in range(count):
        order = random.Random(f"document/{seed}/{i}").sample(sections, len(sections))
        about = questions[i % len(questions)]
        text = "\n\n".join(f"{x['heading']}\n\n{x['text']}" for x in order)
        prompt = f"{TITLE}\n\n{text}\n\nAnswer from this text, with your reasons: {about['question']}"
        made.append(Problem(f"document/{seed}/{i}/{about['id']}", prompt, "", "document", 0))
    return made


TASK = Task("document", _prompts)
