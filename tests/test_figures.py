"""The tables of README.md and docs/results.md say what benchmarks/results says.

A claim is a piece of the text, made here from the results; it must stand in the text as it is.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README, DOCS = ROOT / "README.md", ROOT / "docs" / "results.md"
WAVE = "reasonalloc-wave 384"
SEALED = {  # the planned comparisons by what the table calls them
    "the wave less R-KV": ("wave-kept", "R-KV-kept"), "ReasonAlloc less R-KV": ("reasonalloc-kept", "R-KV-kept"),
    "head shares less R-KV": ("heads-kept", "R-KV-kept"),
    "the wave with head shares less R-KV": ("wave-heads-kept", "R-KV-kept"),
    "`h2o` less R-KV": ("newer-kept", "R-KV-kept"), "order 5 less the wave": ("order-kept", "wave-kept"),
    "R-KV with its prompt kept less without": ("R-KV-kept", "R-KV"),
}  # fmt: skip


@cache
def rows(name):
    data = json.loads((RESULTS / f"{name}.json").read_text())
    return {x["cell"]: x for x in data["rows"]}


def percent(x):
    return f"{100 * x:.0f}"


def right(name, cell, spread=True):
    x = rows(name)[cell]["accuracy"]
    return f"{percent(x['mean'])} %" + (f" [{percent(x['low'])}, {percent(x['high'])}]" if spread else "")


def cut(name, cell):
    return f"{percent(rows(name)[cell]['truncated'])} %"


def both(name, cell):
    return f"{right(name, cell)}; {cut(name, cell)}"


def signed(x):
    return f"{'+' if x >= 0 else '-'}{percent(abs(x))}"


def bounds(x):
    low, high = (("-" if x[k] < 0 and percent(-x[k]) != "0" else "") + percent(abs(x[k])) for k in ("low", "high"))
    return f"[{low}, {high}]"


def less(name, cell, other, plus=True):
    """A row's difference from another cell."""
    found = next(x for x in rows(name)[cell]["against"] if x["against"] == other)["difference"]
    return f"{signed(found['mean']) if plus else percent(found['mean'])} {bounds(found)}"


def comparisons(name):
    return json.loads((RESULTS / f"{name}-comparisons.json").read_text())["comparisons"]


def planned(name, cell, other, slots=384):
    """A comparison of a study file."""
    pair = f"{cell} {slots}", f"{other} {slots}"
    own = next(x["difference"] for x in comparisons(name) if (x["cell"], x["against"]) == pair)
    return f"{signed(own['mean'])} {bounds(own)}"


def megabytes(name, slots):
    """Mean bytes of the rows at so many slots, from the fewest to the most."""
    return sorted(row["mean_bytes"] / 1e6 for row in rows(name).values() if row["budget"] == slots)


def says(path, claim):
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    assert re.sub(r"\s+", " ", claim) in text, f"{path.name} should say: {claim}"


def printed_by(study, *options):
    script = ROOT / "benchmarks" / "studies" / f"{study}.py"
    return subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True).stdout


def answers():
    paper, restated = "paper/ledger", "restated/accuracy"
    for method in ("full", "reasonalloc", "reasonalloc-wave", "rkv", "streaming", "snapkv", "random"):
        cells = ["full"] * 2 if method == "full" else [f"{method} {x}" for x in (384, 512)]
        note = " (11 to 16 % fewer bytes than `rkv`: it is cut at every token)" if method == "streaming" else ""
        said = [both(name, x) for name in (paper, restated) for x in cells]
        yield DOCS, f"| `{method}`{note} | {' | '.join(said)} |"
    yield DOCS, f"| `pyramid-rkv` | {both(paper, 'pyramid-rkv 384')} | {both(paper, 'pyramid-rkv 512')} | | |"


def parts():
    low, high = "ablations/parts", "ablations/alpha-0.5/parts"
    names = {
        "rkv 384": "R-KV", WAVE: "the wave alone, `reasonalloc-wave`",
        "reasonalloc-route 384": "routing alone, `reasonalloc-route`", "reasonalloc 384": "both, `reasonalloc`",
    }  # fmt: skip
    for cell, what in names.items():
        if cell == "rkv 384":
            yield DOCS, f"| {what} | {both(low, cell)} | {both(high, cell)} |"
            continue
        for name in (low, high):
            yield DOCS, f"{right(name, cell)}; {less(name, cell, 'rkv 384').removeprefix('+')} ("
            yield DOCS, f"); {cut(name, cell)} |"


def prompt():
    name = "prompt/prompt"
    for label, what in (("R-KV", "R-KV"), ("wave", "the wave"), ("reasonalloc", "ReasonAlloc")):
        plain, kept = f"{label} 384", f"{label}-kept 384"
        found = planned(name, f"{label}-kept", label)
        yield DOCS, f"| {what} | {both(name, plain)} | {both(name, kept)} | {found} |"
    ours, theirs = (f"{100 * rows(name)[x]['accuracy']['mean']:.1f} %" for x in ("reasonalloc 384", "R-KV 384"))
    yield ROOT / "docs" / "evaluation.md", f"{ours} against {theirs}"


def notch():
    name = "notch/notch"
    names = {
        "rkv 384": "even: R-KV", WAVE: "**the wave**",
        f"{WAVE} wave=notch-only": "notch only: three layers as in the wave, the others even",
        f"{WAVE} wave=no-notch": "no notch: these three get the mean, the others follow the wave",
    }  # fmt: skip
    for cell, what in names.items():
        found = f"**{right(name, cell)}**" if cell == WAVE else right(name, cell)
        yield DOCS, f"| {what} | {found} | {cut(name, cell)} |"
    cell = f"{WAVE} prompt=spared"
    what = "the wave above prompt and window (`spare_prompt`)"
    yield DOCS, f"| {what} | {right('notch/spared', cell)} | {cut('notch/spared', cell)} |"


def order():
    then, now = "notch/notch", "order/notch"
    five, kept = f"{WAVE} wave=notch-kept-5", f"{WAVE} wave=notch-kept-"
    yield DOCS, f"| **order 5** | {right(then, five)} | **{right(now, five)}** |"
    yield DOCS, f"| the wave's order | {right(then, WAVE)} | {right(now, WAVE)} |"
    plain = {
        "order 17": f"{kept}17", "notch only": f"{WAVE} wave=notch-only", "even: R-KV": "rkv 384",
        "order 12, the worst": f"{kept}12",
    }  # fmt: skip
    for what, cell in plain.items():
        own = [right(then, cell, what in ("even: R-KV", "notch only")), right(now, cell, False)]
        yield DOCS, f"| {what} | {' | '.join(own)} |"
    orders = [x["accuracy"]["mean"] for cell, x in rows(now).items() if cell == WAVE or cell.startswith(kept)]
    assert len(orders) == 20 and min(orders) == rows(now)[f"{kept}12"]["accuracy"]["mean"]
    yield DOCS, f"less the wave **{less(now, five, WAVE)}**, less R-KV **{less(now, five, 'rkv 384')}**"


def newer():
    name = "newer/newer"
    for cell, what in (("vase-128", "`vase`, window 128"), ("spans", "`spans`"), ("R-KV", "`rkv`"),
                       ("lazyeviction", "`lazyeviction`"), ("h2o", "**`h2o`**")):  # fmt: skip
        row = rows(name)[f"{cell} 384"]
        found = right(name, f"{cell} 384")
        found = f"**{found}**" if cell == "h2o" else found
        yield DOCS, f"| {what} | {found} | {cut(name, f'{cell} 384')} | {row['mean_bytes'] / 1e6:.1f} |"
    ours, theirs = (right(name, f"{x} 384") for x in ("spans", "R-KV"))
    yield ROOT / "docs" / "methods.md", f"it has {ours} right where R-KV has {theirs}"
    few = [right(name, f"{x} 384", False).removesuffix(" %") for x in ("dynamickv", "raas", "vatp", "vase")]
    yield DOCS, f"| `dynamickv`, `raas`, `vatp`, `vase` | {', '.join(few)} % |"
    ours, theirs = (right("h2o/h2o", f"{x} 384") for x in ("h2o", "R-KV"))
    yield DOCS, f"{ours} against {theirs}, **{planned('h2o/h2o', 'h2o', 'R-KV')}**"


def kernel():
    name = "kernel/kernel"
    cells = {f"reasonalloc 384{x}": what for x, what in (
        (" kernel=1", "1 (its own importance alone)"), (" kernel=3", "3"), ("", "7, the default"), (" kernel=15", "15"),
    )}  # fmt: skip
    for cell, what in cells.items():
        found = f"**{right(name, cell)}**" if what == "15" else right(name, cell)
        yield DOCS, f"| {what} | {found} | {cut(name, cell)} |"
    plain = "reasonalloc 384"
    pairs = [next(x for x in rows(name)[f"{plain} kernel={k}"]["against"] if x["against"] == plain) for k in (1, 3, 15)]
    said = [f"{signed(x['difference']['mean'])} {bounds(x['difference'])}" for x in pairs]
    assert {f"{x['holm']:.1f}" for x in pairs} == {"0.3"} and {x["family"] for x in pairs} == {3}
    yield DOCS, f"Less the default: {said[0]}, {said[1]} and {said[2]} (Holm's p of 3: 0.3 each)"
    wide = next(x for x in rows(name)[f"{plain} kernel=15"]["against"] if x["against"] == "rkv 384")
    assert wide["family"] == 4
    gain = f"{signed(wide['difference']['mean'])} {bounds(wide['difference'])}"
    yield DOCS, f"15 is {gain} on R-KV with its 7 ({wide['holm']:.1g} of 4)"


def kernel_again():
    name = "kernel-15/kernel-15"
    for label, what, other in (("R-KV", "R-KV", "R-KV-15"), ("reasonalloc", "ReasonAlloc", "reasonalloc-15")):
        cells = [f"{x} 384" for x in (label, other)]
        yield DOCS, f"| {what} | {both(name, cells[0])} | {both(name, cells[1])} | {planned(name, other, label)}, 1 |"
    assert [f"{x['holm']:.1g}" for x in comparisons(name)] == ["1", "1"]
    ours, theirs, ours_before, theirs_before = (
        right(study, f"{label} 384", False) for study in (name, "recall/recall") for label in ("reasonalloc", "R-KV")
    )
    yield DOCS, f"here ({ours} against {theirs}) and beside [recall](#tokens-that-come-back) ({ours_before} against"
    yield DOCS, f"({ours_before} against {theirs_before}), on two seeds"


def recent():
    name = "recent/recent"
    for cell, what in (("h2o", "174 to 302: `h2o`"), ("snapkv-window-192", "`snapkv`, window 192"),
                       ("R-KV-window-192", "`rkv`, window 192"), ("streaming", "every token: `streaming`"),
                       ("wave-h2o", "the wave's layer budgets"), ("order-h2o", "order 5 of them")):  # fmt: skip
        found, row = right(name, f"{cell} 384"), rows(name)[f"{cell} 384"]
        found = f"**{found}**" if cell == "h2o" else found
        yield DOCS, f"{what} | {found} | {cut(name, f'{cell} 384')} | {row['mean_bytes'] / 1e6:.1f} |"


def recency():
    name = "recency/recency"
    two = {cell: [both(name, f"{cell} {x}") for x in (384, 512)] for cell in ("newest", "h2o", "R-KV")}
    yield DOCS, f"`streaming`, interval 128 | {' | '.join(two['newest'])} |"
    yield DOCS, f"| H2O, `h2o` | {two['h2o'][0]}; every chain the same | {two['h2o'][1]} |"
    yield DOCS, f"| R-KV, `rkv` | {' | '.join(two['R-KV'])} |"
    less = {(x["cell"], x["against"]): x for x in comparisons(name)}
    small, large = (less[f"R-KV {x}", f"newest {x}"] for x in (384, 512))
    gain = less["h2o 512", "newest 512"]["difference"]
    yield DOCS, f"attended to: {signed(gain['mean'])} {bounds(gain)} against the newest alone."
    one, other = (f"{signed(x['difference']['mean'])} {bounds(x['difference'])}" for x in (small, large))
    yield DOCS, f"R-KV less the newest: {one} at 384 slots, {other} at 512"
    lines = gzip.decompress((RESULTS / "recency" / "generations.jsonl.gz").read_bytes()).splitlines()
    texts = {(x["cell"], x["item"]): x["text"] for x in map(json.loads, lines)}
    items = [item for cell, item in texts if cell == "h2o 384"]
    assert len(items) == 24 and all(texts["h2o 384", x] == texts["newest 384", x] for x in items)


def sealed():
    name = "evidence/evidence"
    names = {
        "R-KV": ("R-KV, `rkv`", "`rkv`"), "wave": ("the wave, `reasonalloc-wave`", ""),
        "reasonalloc": ("ReasonAlloc, `reasonalloc`", "`reasonalloc`"),
        "routing": ("routing alone, `reasonalloc-route`", ""),
        "heads": ("R-KV with measured head shares", '`rkv`, `heads="profile"`'),
        "wave-heads": ("the wave with head shares", ""),
        "order": ("order 5 of the wave's budgets", "`reasonalloc-wave`, order 5"),
        "newer": ("`h2o`; kept at 384 slots it is the newest tokens", "`h2o`"),
    }  # fmt: skip
    for cell, (ours, short) in names.items():
        each = " | ".join(both(name, f"{x} {slots}") for slots in (384, 512) for x in (f"{cell}-kept", cell))
        yield DOCS, f"| {ours} | {each} |"
        if short:
            yield README, f"| {short} | {each} |"
    for path in (DOCS, README):
        yield path, f"he full cache has {right(name, 'full')}"
    small, large = ([f"{x:.1f}" for x in megabytes(name, slots)] for slots in (384, 512))
    full = f"{rows(name)['full']['mean_bytes'] / 1e6:.1f}"
    said = f"{small[0]} to {small[-1]} MB at 384 slots, {large[0]} to {large[-1]} at 512, {full} for the full cache"
    plan = yaml.safe_load((ROOT / "benchmarks" / "studies" / "evidence.yaml").read_text(encoding="utf-8"))
    family = len(plan["comparisons"]) * len(plan["budgets"])
    yield README, f"Mean bytes of a chain's cache are {said}; tests are Holm's over {family} comparisons."
    yield DOCS, f"2 samples, Holm over {family})"
    yield DOCS, f"takes {small[0]} to {small[-1]} MB in the mean at 384 slots"
    yield DOCS, f"{large[0]} to {large[-1]} MB at 512, and {full} MB whole: systems at one budget are within 6 %"
    assert all(most / least < 1.06 for least, *_, most in (megabytes(name, 384), megabytes(name, 512)))
    told = {(x["cell"], x["against"]): x["holm"] < 0.05 for x in comparisons(name)}
    for what, (cell, other) in SEALED.items():
        each = [
            ("**" if told[f"{cell} {slots}", f"{other} {slots}"] else "") + f"{planned(name, cell, other, slots)}, p "
            for slots in (384, 512)
        ]
        yield DOCS, f"| {what} | {each[0]}"
        yield DOCS, f" | {each[1]}"
    ours = planned(name, "reasonalloc-kept", "R-KV-kept").removeprefix("+").replace(" ", " points ", 1)
    yield README, f"ReasonAlloc is {ours} ahead of R-KV at 384"
    two = [planned(name, "reasonalloc-kept", "R-KV-kept", x) for x in (384, 512)]
    points = two[0].replace(" ", " points ", 1)
    yield ROOT / "docs" / "limits.md", f"better at 384 slots ({points}) and level at 512 ({two[1]}; [results]"


def recall():
    name = "recall/recall"
    lines = {
        "R-KV": ("`rkv`", None, ""), "R-KV-recall": ("`rkv`, recall", "R-KV", ", Holm's p of 3: 0.7"),
        "R-KV-recall-int8": ("`rkv`, recall, cold tokens in 8 bits", "R-KV-recall", " less recall in float32, 0.7"),
        "reasonalloc": ("`reasonalloc`", None, ""),
        "reasonalloc-recall": ("`reasonalloc`, recall", "reasonalloc", ", 0.5"),
    }  # fmt: skip
    for label, (what, other, rest) in lines.items():
        cell = f"{label} 384"
        size = f"{rows(name)[cell]['mean_bytes'] / 1e6:.1f}"
        found = f"{planned(name, label, other)}{rest} " if other else ""
        yield DOCS, f"| {what} | {both(name, cell)} | {size} | {found}|"
    assert [f"{x['holm']:.1f}" for x in comparisons(name)] == ["0.7", "0.7", "0.5"]


GATES = {
    "full": "full cache", "seed0-60": "`rlkv`, seed 0", "seed1-60": "`rlkv`, seed 1", "duo-60": "Duo's gates",
    "R-KV-kept-60": "`rkv`, prompt kept", "reasonalloc-kept-60": "`reasonalloc`, prompt kept",
    "newest-kept-60": "newest tokens, prompt kept",
}  # fmt: skip


def answers_and_size(name, cell):
    """Columns of docs/rlkv.md's tables."""
    x = rows(name)[cell]
    size = f"{x['mean_bytes'] / 1e6:.1f} | {x['peak_bytes'] / 1e6:.1f}"
    return f"{both(name, cell)} | {x['tokens']:,.0f} | {size} |"


def gates():
    page, name = ROOT / "docs" / "rlkv.md", "rlkv-accuracy/rlkv"
    found = rows(name)
    for cell, what in {**GATES, "random-1-60": "random gates, best of five", "R-KV-60": "`rkv`"}.items():
        yield page, f"| {what} | {answers_and_size(name, cell)}"
    assert max((x["accuracy"]["mean"], cell) for cell, x in found.items() if "random" in cell)[1] == "random-1-60"
    one, two, duo, rkv, ours = (
        right(name, f"{x}-60", False) for x in ("seed0", "seed1", "duo", "R-KV-kept", "reasonalloc-kept")
    )
    yield DOCS, f"`rlkv` answers {one.removesuffix(' %')} and {two} (two trainings), DuoAttention's gates {duo}"
    yield DOCS, f"R-KV at equal mean bytes {rkv}, ReasonAlloc {ours}, random gates 0 to 2 %"
    yield README, f"[{one} right where R-KV has {rkv.removesuffix(' %')}](docs/rlkv.md#what-these-heads-answer)"


ROW = re.compile(  # of what studies/table.py prints
    r"^ +\d+ (?P<name>\S+) +(?P<right>\S+)% \[(?P<low>\S+)%, (?P<high>\S+)%\] +cut off +(?P<cut>\d+)% +(?P<tokens>\S+)"
    r" +(?P<size>\S+) MB \(\S+\) +ahead of +(?P<ahead>\d+), behind +(?P<behind>\d+)"
    r"(?:  less rkv (?P<less>\S+)% \[(?P<from>\S+)%, (?P<to>\S+)%\], Holm (?P<holm>\S+))?"
    r"(?P<far> +bytes are not equal)?$",
    re.MULTILINE,
)


def table():
    """As the study's own script prints it."""
    printed = printed_by("table")
    found = [x.groupdict() for x in ROW.finditer(printed)]
    assert len(found) == 24

    def whole(x):
        return f"{float(x):.0f}".replace("-0", "0")

    for x in found:
        far = " (not equal)" if x["far"] else ""
        own = ""
        if x["less"]:
            p = float(x["holm"])
            own = f"{float(x['less']):+.0f} [{whole(x['from'])}, {whole(x['to'])}], {float(f'{p:.1g}'):g}"
        answered = f"{whole(x['right'])} % [{whole(x['low'])}, {whole(x['high'])}]; {x['cut']} %"
        size = f"{float(x['size']):.1f}{far}"
        yield DOCS, f"| `{x['name']}` | {answered} | {x['tokens']} | {size} | {own} | {x['ahead']} / {x['behind']} |"
    told = re.search(r"(\d+) of (\d+) pairs are told apart", printed)
    yield DOCS, f"All {told[2]} pairs are compared"
    yield DOCS, f"{told[1]} pairs are told apart"
    first = re.findall(
        r"^  rlkv less \S+ \(1 and (\d)\): +\+([\d.]+)% \[\+([\d.]+)%, \+([\d.]+)%\]", printed, re.MULTILINE
    )
    fifth, second = (f"{whole(mean)}{{}} [{whole(low)}, {whole(high)}]" for _, mean, low, high in first)
    yield DOCS, f"is {second.format(' points')} ahead of the second, {fifth.format('')} of the fifth"
    best = found[0]
    yield DOCS, f"{whole(best['less'])} points [{whole(best['from'])}, {whole(best['to'])}] ahead of R-KV"
    share = {x["name"]: whole(x["right"]) for x in found}
    rlkv, newest, ours, rkv, least = (share[x] for x in ("rlkv", "streaming", "reasonalloc", "rkv", "random"))
    yield README, f"`rlkv` {rlkv} %, the newest tokens {newest}, ReasonAlloc {ours}, R-KV {rkv}, random {least}."
    peaks = {cell: x["peak_bytes"] / 1e6 for cell, x in rows("table/table").items()}
    others = [x for cell, x in peaks.items() if cell not in ("full", "rlkv-384", "duo-384")]
    own = f"Its peak is {peaks['rlkv-384']:.1f} MB, `duo`'s {peaks['duo-384']:.1f}"
    yield DOCS, f"{own}, the others' {min(others):.0f} to {max(others):.0f}"


def shares():
    name = "shares/shares"
    cells = {x: both(name, f"{x} 384") for x in ("heads", "R-KV", "R-KV-kept")}
    yield (
        DOCS,
        f"{cells['heads']} as any other text, R-KV {cells['R-KV']} so and {cells['R-KV-kept']} with its prompt kept.",
    )
    yield DOCS, f"Head shares less R-KV {planned(name, 'heads', 'R-KV')}, less R-KV with its prompt kept"
    yield DOCS, f"prompt kept {planned(name, 'heads', 'R-KV-kept')}** ("
    yield DOCS, f"With order 5 as well, a look: {right(name, 'order-heads 384')}."


def heads():
    name = "heads/heads"
    for label, what in (("R-KV", "R-KV"), ("heads", "R-KV with head shares"), ("wave", "the wave"),
                        ("wave-heads", "**the wave with head shares**")):  # fmt: skip
        found = right(name, f"{label} 384")
        found = f"**{found}**" if label == "wave-heads" else found
        yield DOCS, f"| {what} | {found} | {cut(name, f'{label} 384')} |"
    yield DOCS, f"Head shares less R-KV {planned(name, 'heads', 'R-KV')} ("
    yield DOCS, f"less R-KV {planned(name, 'wave-heads', 'R-KV')} ("


def fidelity():
    data = json.loads((RESULTS / "fidelity.json").read_text())
    points = {(x["method"], x["budget"]): x for x in data["points"]}
    for method in ("snapkv", "rkv", "reasonalloc", "random", "streaming"):
        two = [points[method, budget] for budget in (64, 128)]
        yield DOCS, " / ".join(f"{x['kl']['mean']:.3f}" for x in two)
        yield DOCS, " / ".join(f"{100 * x['agreement']['mean']:.1f}" for x in two) + " %"


def next_tokens():
    def of(x):
        return f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]"

    names = {"rkv": "R-KV", "reasonalloc-wave": "the wave", "reasonalloc-wave wave=notch-only": "notch only",
             "reasonalloc-wave wave=no-notch": "no notch"}  # fmt: skip
    said = {name: f"| {what} |" for name, what in names.items()}
    for file in ("documents", "ledger-kept", "ledger-dropped"):
        data = json.loads((RESULTS / "fidelity-notch" / f"{file}.json").read_text())
        less = {x["name"]: f"; {of(x['kl'])}" for x in data["differences"]}
        for point in data["points"]:
            name = f"{point['method']} {point['variant']}".strip()
            said[name] += f" {of(point['kl'])}{less.get(name, '')} |"
    for row in said.values():
        yield DOCS, row


def speed():
    data = json.loads((RESULTS / "throughput.json").read_text())
    best = {(x["cache"], x["chain"]): x["best"] for x in data["equal_memory"]}
    names = {"dynamic": "DynamicCache", "static": "StaticCache", "full": "ours, nothing evicted"}
    names |= {f"reasonalloc-{x}": f"ours, budget {x}" for x in (512, 256, 128)}
    for own, what in names.items():
        each = [best[own, x] for x in (1024, 4096, 8192)]
        yield DOCS, f"| {what} | " + " | ".join(f"{x['tokens_per_s']:.0f} (batch {x['rows']})" for x in each) + " |"

    long = {cache: f"{best[cache, 8192]['tokens_per_s']:.0f}" for cache in names}
    yield README, f"DynamicCache / StaticCache make {long['dynamic']} / {long['static']} tokens per second"
    yield README, f"ours {long['full']} with nothing evicted"
    ours = " / ".join(long[f"reasonalloc-{x}"] for x in (512, 256, 128))
    yield README, f"{ours} at budgets of 512 / 256 / 128"
    steps = {(x["batch"], x["length"]): x["step_s"] for x in data["steps"]}
    names = {"dynamic": "transformers DynamicCache", "static": "transformers StaticCache",
             "full": "ours, nothing evicted", "reasonalloc-256": "ours, budget 256"}  # fmt: skip
    for own, what in names.items():
        each = [1000 * steps[x][own] for x in ((1, 4096), (8, 1024), (8, 4096))]
        yield DOCS, f"| {what} | {' | '.join(f'{x:.0f}' for x in each)} |"


def kernels():
    data = json.loads((RESULTS / "kernels.json").read_text())
    for keys, what in (("real", "times as fast as R-KV's published form, keys of SmolLM2"),
                       ("random", "the same, uncorrelated keys (the worst case)")):  # fmt: skip
        found = {x["n"]: x["ratio"]["published form"] for x in data["compression"]
                 if (x["keys"], x["dtype"], x["cut"]) == (keys, "float32", "steady")}  # fmt: skip
        said = [f"{found[n]:.0f}x" if found[n] >= 100 else f"{found[n]:.1f}x" for n in (384, 1152, 2176, 4224)]
        yield DOCS, f"| {what} | {' | '.join(said)} |"
    scratch = {x["n"]: x["bytes"] for x in data["scratch"] if x["dtype"] == "float32"}
    peaks = [[max(y["peak_bytes"] for y in scratch[n][who].values()) / 2**20 for who in ("ours", "published form")]
             for n in (384, 1152, 2176, 4224)]  # fmt: skip
    said = " | ".join(f"{ours:.2f} / {theirs:,.0f}" for ours, theirs in peaks)
    yield DOCS, f"| scratch memory, ours / published form, MiB | {said} |"
    found = {(x["dtype"], x["batch"], x["n"]): x["ratio"]["SDPA grouped"] for x in data["attention"]
             if x["from"] == "memory"}  # fmt: skip
    for dtype in ("float32", "bfloat16", "float16"):
        said = [" / ".join(f"{found[dtype, b, n]:.1f}x" for b in (1, 8)) for n in (256, 2048, 8192)]
        yield DOCS, f"| {dtype}, batch 1 / 8 | {' | '.join(said)} |"


def demo():
    """`reasonalloc demo --json FILE`, without its texts."""
    data = json.loads((RESULTS / "demo.json").read_text())
    start, steps = ROOT / "docs" / "start.md", data["steps_compared"]
    full, rkv, ours = data["runs"]
    assert {x["questions"] for x in data["runs"]} == {24} and data["provenance"]["machine"]["cpus"] == 2

    def each(name, scale=1):
        return "{:.0f}, {:.0f} and {:.0f}".format(*(x[name] / scale for x in (full, rkv, ours)))

    yield start, f"{data['seconds']:.0f} s to run: {each('right')} of 24 answers right; {each('peak_bytes', 1e6)} MB at"
    yield start, f"{each('tokens_per_second')} tokens a second over the {steps} steps that all chains took"
    yield start, f"{each('late_tokens_per_second')} in the last {steps // 4} of them"


KINDS = (
    answers, parts, prompt, notch, order, newer, kernel, kernel_again, recent, recency, recall, gates, table, sealed,
    shares, heads, fidelity, next_tokens, speed, kernels, demo,
)  # fmt: skip
CLAIMS = [(kind.__name__, *x) for kind in KINDS for x in kind()]


@pytest.mark.parametrize(("path", "claim"), [pytest.param(x, y, id=f"{k}-{i}") for i, (k, x, y) in enumerate(CLAIMS)])
def test_the_text_has_the_figure(path, claim):
    says(path, claim)


def test_p_of_the_sealed_comparison():
    """Of its own script, Holm's over all that was planned, are those of the table."""
    printed = printed_by("evidence")
    found = dict(re.findall(r"^  (\S+ \d+ less \S+ \d+) .*, Holm (\S+)$", printed, re.MULTILINE))
    rows = dict(SEALED)
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        what, *cells = line.strip("| ").replace("*", "").split(" | ")
        if what not in rows or ", p " not in line:
            continue
        cell, other = rows.pop(what)
        for text, slots in zip(cells, (384, 512), strict=True):
            p = float(found[f"{cell} {slots} less {other} {slots}"])
            assert text.endswith(f", p {float(f'{p:.1g}'):g}"), (what, slots, p)
    assert not rows


def test_differences_of_trained_gates():
    """Those that the study's own script prints."""
    printed = printed_by("rlkv")
    form = r"^  60 %: (\S+) less (\S+) +([+-][\d.]+)% \[([+-][\d.]+)%, ([+-][\d.]+)%\]  p (\S+?)(?:, Holm (\S+))?$"
    found = {x[:2]: x[2:] for x in re.findall(form, printed, re.MULTILINE)}

    def told(other, first="rlkv"):
        mean, low, high, *_ = found[first, other]
        mean = f"{float(mean):.0f}".replace("-0", "0")
        return f"{mean} [{float(low):.0f}, {float(high):.0f}]", float(found[first, other][4] or 1)

    assert told("random")[1] == told("R-KV-kept")[1] == 6e-5 and told("duo")[1] == 1
    page = ROOT / "docs" / "rlkv.md"
    random, rkv, duo, ours, newest = (
        told(x)[0] for x in ("random", "R-KV-kept", "duo", "reasonalloc-kept", "newest-kept")
    )
    says(page, f"{random.replace(' ', ' points ', 1)} ahead of random heads, {rkv} ahead of R-KV at equal bytes**")
    says(page, f"level with Duo's gates, {duo}, p 1")
    says(page, f"{ours.replace(' ', ' points ', 1)} ahead of ReasonAlloc, {newest} of the newest tokens")
    says(page, f"seed 0 is {told('seed1', 'seed0')[0]} ahead of seed 1")
    checks = dict(re.findall(r"^  (\S+) +([\d.]+)$", printed, re.MULTILINE))
    cells = ("seed0-60", "seed1-60", "duo-60", "R-KV-kept-60", "reasonalloc-kept-60", "newest-kept-60")
    full, one, two, duo, rkv, ours, newest = (checks[x] for x in ("full", *cells))
    assert duo == "0.0"
    says(
        page, f"checks its work {full} times a chain (once a question), RLKV's seeds {one} and {two} times, Duo's never"
    )
    says(page, f"R-KV with its prompt kept {rkv} times, ReasonAlloc {ours}, the newest tokens {newest}")


def test_checks_of_chains():
    """Counted by the study's own script."""
    page = ROOT / "docs" / "rlkv.md"
    printed = printed_by("checks")
    counted = dict(re.findall(r"^  (\S+) +([\d.]+) checks a chain$", printed, re.MULTILINE))
    for cell, what in GATES.items():
        says(page, f"| {what} | {counted[cell]} | {answers_and_size('checks/checks', cell)}")
    form = r"^  (\S+ less \S+) +\+([\d.]+)% \[\+([\d.]+)%, \+([\d.]+)%\]  p \S+, Holm (\S+)$"
    found = {what: ([round(float(n)) for n in x], float(p)) for what, *x, p in re.findall(form, printed, re.MULTILINE)}
    (duo, p), (rkv, q), (full, r) = (found[x] for x in ("rlkv less duo-60", "rlkv less R-KV-kept-60", "full less rlkv"))
    assert p == q == 3e-5 and r == 0.004
    says(
        page,
        f"**{duo[0]} points [{duo[1]}, {duo[2]}] more than those of Duo's** and {rkv[0]} [{rkv[1]}, {rkv[2]}] more",
    )
    says(page, f"the full cache checks {full[0]} [{full[1]}, {full[2]}] more than RLKV, p {r}")
