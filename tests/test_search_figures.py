"""Of searches, the second task: README.md and docs say what benchmarks/results says, as test_figures of the rest."""

from __future__ import annotations

import json
import re

import pytest
from test_figures import (
    DOCS,
    README,
    RESULTS,
    ROOT,
    SEALED,
    both,
    comparisons,
    cut,
    megabytes,
    percent,
    planned,
    printed_by,
    right,
    rows,
    says,
)

TOLD = "evidence-search/evidence-search-part"


def sealed():
    names = {
        "R-KV": "R-KV", "wave": "the wave", "reasonalloc": "ReasonAlloc", "routing": "routing alone",
        "heads": "R-KV with measured head shares", "wave-heads": "the wave with head shares", "newer": "`h2o`",
    }  # fmt: skip
    for cell, what in names.items():
        yield DOCS, f"| {what} | {both(TOLD, f'{cell}-kept 768')} | {both(TOLD, f'{cell} 768')} |"
    used, full = megabytes(TOLD, 768), rows(TOLD)["full"]
    yield DOCS, f"The full cache has {right(TOLD, 'full')}, {cut(TOLD, 'full')} cut off at 4,096 tokens"
    yield DOCS, f"takes {used[0]:.1f} to {used[-1]:.1f} MB in the mean, {full['mean_bytes'] / 1e6:.1f} whole."
    found = {(x["cell"], x["against"]): x for x in comparisons(TOLD)}
    assert {x["family"] for x in found.values()} == {18}
    for what, (cell, other) in SEALED.items():
        if cell == "order-kept":  # not of this task
            continue
        holm = found[f"{cell} 768", f"{other} 768"]["holm"]
        mark = "**" if holm < 0.05 else ""
        said = f"{planned(TOLD, cell, other, 768)}, p {float(f'{holm:.1g}'):g}"
        yield DOCS, f"| {what} | {mark}{said}{mark} |"
    ahead = [x for (_, other), x in found.items() if other == "R-KV-kept 768" and x["difference"]["mean"] > 0]
    assert not ahead
    ours = planned(TOLD, "reasonalloc-kept", "R-KV-kept", 768)
    yield ROOT / "docs" / "limits.md", f"On *search* it is not told from R-KV ({ours} at 768 slots;"
    kept = planned(TOLD, "R-KV-kept", "R-KV", 768).removeprefix("+")
    said = f"Within 768 slots, {percent(768 / full['tokens'])} % of a chain, R-KV has {right(TOLD, 'R-KV-kept 768')}"
    said += f" and no system is told ahead of it, ReasonAlloc {right(TOLD, 'reasonalloc-kept 768')}"
    yield README, f"{said}; a kept prompt is worth {kept.replace(' ', ' points ', 1)}."
    ledger = [planned("evidence/evidence", "R-KV-kept", "R-KV", x)[1:3] for x in (384, 512)]
    yield ROOT / "docs" / "faq.md", f"a kept prompt was worth {min(ledger)} to {kept.split()[0]} points to R-KV."


def test_secondary_of_the_plan():
    """By the plan's own script."""
    printed = printed_by("evidence", str(RESULTS / "evidence-search"))
    form = r"^  heads 768 less R-KV 768 +\+([\d.]+)% \[\+([\d.]+)%, \+([\d.]+)%\]"
    (found,) = re.findall(form, printed, re.MULTILINE)
    mean, low, high = (round(float(x)) for x in found)
    says(DOCS, f"measured head shares are worth {mean} points [{low}, {high}] more than R-KV (secondary)")


def looks():
    small, larger = "search/search", "search-budgets/search-budgets"
    names = {
        "R-KV": "R-KV", "wave": "the wave", "reasonalloc": "ReasonAlloc", "snapkv": "`snapkv`", "h2o": "`h2o`",
        "streaming": "the newest tokens, `streaming`",
    }  # fmt: skip
    again = {x.rsplit(" ", 1)[0] for x in rows(larger)}

    def answered(name, cell):
        return f"{right(name, cell)}; {rows(name)[cell]['tokens']:,.0f}"

    for cell, what in names.items():
        more = [answered(larger, f"{cell} {x}") if cell in again else "" for x in (512, 1024)]
        yield DOCS, f"| {what} | {' | '.join([answered(small, f'{cell} 256'), *more])} |"
    yield DOCS, f"The full cache has {answered(small, 'full')}"
    live = json.loads((RESULTS / "branches.json").read_text())
    said = f"Prompt and live lines are {live['mean']:.0f} tokens in the mean and never more than {live['most']}"
    yield DOCS, f"{said}; {percent(live['dead'])} % of what the context holds is dead"
    _, _, *spent, small_told, large_told = printed_by("spent", "--table").splitlines()
    assert len(spent) == 6 and json.loads((RESULTS / "spent.json").read_text())["budget"] == 256
    for row in spent:
        yield DOCS, row
    two = []
    for line, slots in ((small_told, 256), (large_told, 512)):
        found = re.match(rf"the oracle's own chains, {slots} slots: (\d+)% \[(\d+)%, (\d+)%\] right", line)
        two.append(f"{found[1]} % [{found[2]}, {found[3]}] within {slots}")
    yield DOCS, f"dead answers {two[0]} slots, {two[1]}**"
    most = max(rows(small)[f"{cell} 256"]["accuracy"]["mean"] for cell in names)
    has = f"where every method has at most {percent(most)} %"
    yield DOCS, f"told which lines are dead, an eviction answers {two[0]} slots, {has}"
    dead, told = percent(live["dead"]), two[0].split(" [")[0]
    said = f"are {dead} % dead branches, an oracle that evicts these answers {told} within a tenth of the cache"
    yield README, f"{said}, every method at most {percent(most)}."
    assert 9 <= rows(small)["full"]["tokens"] / 256 <= 11.5


CLAIMS = [(kind.__name__, *x) for kind in (sealed, looks) for x in kind()]


@pytest.mark.parametrize(("path", "claim"), [pytest.param(x, y, id=f"{k}-{i}") for i, (k, x, y) in enumerate(CLAIMS)])
def test_the_text_has_the_figure(path, claim):
    says(path, claim)
