"""docs/cuda.md says what benchmarks/results/gpu-*.json say, as test_figures does of the other tables."""

from __future__ import annotations

import json
import statistics

import pytest
from test_figures import ROOT, says

H100, H200, NEWER, PEERS = (
    json.loads((ROOT / "benchmarks" / "results" / f"gpu-{x}.json").read_text())
    for x in ("h100", "h200", "h200-newer", "h200-attention")
)
COPY = H100["copy_bytes_per_second"]
FLASHINFER = "FlashInfer", "FlashInfer, tensor cores"


def table_row(what, *cells):
    return f"| {what} | {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def us(part, name):
    """Of the kernels whose names begin so, if there are any."""
    return sum(taken for own, taken in part.items() if own.startswith(name))


def by_scorer(data):
    return {(x["scorer"], x["rows"]): x for x in data["kernels"]}


def shares_of_copy(data):
    """Percent of a copy's rate at which attention alone reads at 32 and 256 rows of 1,024 slots."""
    of, size = by_scorer(data), {x["rows"]: x["bytes"] for x in data["attention"] if x["n"] == 1024 and not x["ragged"]}
    copy = data["copy_bytes_per_second"]
    return [100 * size[rows] / us(of["rkv", rows]["step"], "attend") * 1e6 / copy for rows in (32, 256)]


def kernels():
    of = by_scorer(H100)
    columns = [of["rkv", 1], of["rkv", 32], of["rkv", 256], of["h2o", 32], of["lazy", 32]]
    yield table_row("scorer, rows", *(f"`{x['scorer']}`, {x['rows']}" for x in columns))
    steps, cuts = ([x[part] for x in columns] for part in ("step", "cut"))
    for what, name in (("step: attention", "attend_matrix"), ("`append_token`", "append_token")):
        yield table_row(what, *(f"{us(x, name):.1f}" for x in steps))
    two = [", ".join(f"{us(x, name):.1f}" for name in ("fill_columns", "softmax_ends")) for x in steps[3:]]
    yield table_row("`fill_columns`, `softmax_ends`", "", "", "", *two)
    taken = [sum(x.values()) for x in steps]
    yield table_row("**step, together**", *(f"{x:.1f}" for x in taken))
    named = {
        "cut: `similar_matrix`": "similar_matrix", "`move_slots`": "move_slots",
        "`logits_matrix`, of the window": "logits_matrix<bf16, 4>",
        "`logits_matrix`, of the newest query": "logits_matrix<bf16, 1>", "`allocate_row`": "allocate_row",
        "`measure_keys`": "measure_keys",
    }  # fmt: skip
    for what, name in named.items():
        yield table_row(what, *(f"{us(x, name):,.0f}" if us(x, name) else "" for x in cuts))
    rest = [sum(x.values()) - sum(us(x, name) for name in named.values()) for x in cuts]
    yield table_row("the others", *(f"{x:,.0f}" for x in rest))
    yield table_row("**cut, together**", *(f"{sum(x.values()):,.0f}" for x in cuts))
    yield f"`similar_matrix`, {us(cuts[1], 'similar_matrix'):.0f} of {sum(cuts[1].values()):,.0f} us at 32 rows"
    yield f"`allocate_row`, {us(cuts[0], 'allocate_row'):.0f} us even for one row"
    yield f"`measure_keys`, {us(cuts[1], 'measure_keys'):.0f} us at 32"
    shares = shares_of_copy(H100)
    yield f"{shares[0]:.0f} % of a copy's rate at 32 rows, at {shares[1]:.0f} % at 256"


def in_graphs(data):
    """Median microseconds by (rows, n, ragged)."""
    return {
        (x["rows"], x["n"], x["ragged"]): {k: 1e6 * statistics.median(v) for k, v in x["graph_seconds"].items()}
        for x in data["attention"]
    }


def attention_table(graphs):
    even = [(1, 128), (1, 1024), (1, 32_768), (32, 128), (32, 1024), (256, 1024)]
    shown = [(*x, False) for x in even] + [(32, 1024, True), (256, 1024, True)]
    sizes = [f"{rows}, " + ("512 to 1,536" if ragged else f"{n:,}") for rows, n, ragged in shown]
    yield table_row("rows, slots", *sizes)
    for name in ("ours", "SDPA"):
        yield table_row(name, *(f"{graphs[x][name]:.1f}" for x in shown))


def attention():
    graphs = in_graphs(H100)
    yield from attention_table(graphs)

    def both(rows, ragged=False):
        return " against ".join(f"{graphs[rows, 1024, ragged][x]:.0f}" for x in ("ours", "SDPA"))

    one = graphs[1, 1024, False]
    said = f"{one['ours']:.0f} us against {one['SDPA']:.1f}"
    yield f"{said} for one row of 1,024 slots, {both(32)} for 32, {both(256)} for 256."
    yield f"ahead for rows of different lengths only: {both(256, True)} for 256, {both(32, True)} for 32."
    assert [ragged for (_, _, ragged), x in graphs.items() if x["ours"] < x["SDPA"]] == [True, True]


def attention_since():
    sizes = [(1, 128), (1, 8192), (32, 128), (32, 1024), (256, 1024), (32, 1024, True)]
    keys = [f"128 {rows} {n}{' ragged' if ragged else ''}" for rows, n, *ragged in sizes] + ["64 192 384"]
    layers, graphs = PEERS["layers"], in_graphs(PEERS)
    for when, said in (("before", ", before"), ("now", "")):
        yield table_row(f"ours alone{said}", *(f"{layers[when][f'{x} attend']:.1f}" for x in keys))
        yield table_row(f"ours with append{said}", *(f"{layers[when][x]:.1f}" for x in keys))
    peers = {name: [graphs[rows, n, bool(ragged)][name] for rows, n, *ragged in sizes] for name in FLASHINFER}
    for name, taken in peers.items():
        yield table_row(name, *(f"{x:.1f}" for x in taken), "")
    before, now = ([layers[when][f"{x} attend"] for x in keys] for when in ("before", "now"))
    change = sorted(b / a - 1 for a, b in zip(before, now, strict=True))
    small = [-100 * x for x in change if x < -0.02]
    yield f"Small loads gain {min(small):.0f} to {max(small):.0f} %, the largest loses {100 * change[-1]:.0f} %."
    slower = [[ours > x for ours, x in zip(now, taken, strict=False)] for taken in peers.values()]
    assert slower == [[False, True, False, False, False, False], [False, True, False, True, True, True]]
    matrix = [f"{ours / x:.1f}" for ours, x in zip(now, peers[FLASHINFER[1]], strict=False)]
    assert matrix[3] == matrix[4] == "1.3"


def cuts():
    taken = [[1e6 * statistics.median(x["seconds"][name]) for name in ("ours", "R-KV's form")] for x in H100["cuts"]]
    yield table_row("rows, budget", *(f"{x['rows']}, {x['budget']:,}" for x in H100["cuts"]))
    yield table_row("ours", *(f"{x:,.0f}" for x, _ in taken))
    yield table_row("R-KV's form", *(f"{x:,.0f}" for _, x in taken))
    times = [theirs / ours for ours, theirs in taken]
    yield table_row("times as fast", *(f"{x:.1f}" for x in times))
    yield f"Cuts: {min(times):.1f} to {max(times):.1f} times as fast as R-KV's form; the target is 50."
    least = 646e6 / COPY
    less = taken[3][1] / 1e6 / least
    yield f"{1e3 * least:.2f} ms at the {COPY / 1e12:.2f} TB/s that a copy reaches, {less:.0f} times less than"


def decode():
    one, other = ({(x["cache"], x["rows"]): x for x in data["decode"]} for data in (H100, H200))
    graph, names = one["ours, graph", 1], ("step_ms", "median_ms", "longest_ms")
    mean, median, longest = (f"{graph[name]:.1f}" for name in names)
    yield f"as CUDA graphs {mean} ms (median {median}, longest {longest})"
    yield (
        f"ours without graphs {one['ours', 1]['step_ms']:.1f} ms, DynamicCache at 16,384 tokens"
        f" {one['DynamicCache', 1]['step_ms']:.1f}, StaticCache {one['StaticCache', 1]['step_ms']:.1f};"
        f" 16 rows without graphs {one['ours', 16]['step_ms']:.1f}."
    )
    slower = [x["step_ms"] / other[key]["step_ms"] for key, x in one.items() if key[0] != "ours, graph"]
    yield f"{min(slower):.1f} to {max(slower):.1f} times as long as the H200's"
    for name, what in (("ours", "ours"), ("ours, graph", "ours as CUDA graphs")):
        found = [other[name, rows] for rows in (1, 16, 128)]
        yield table_row(f"{what}, mean / median, ms", *(f"{x['step_ms']:.1f} / {x['median_ms']:.1f}" for x in found))
    for name, what in (("DynamicCache", ""), ("StaticCache", ", not compiled")):
        found = [f"{other[name, rows]['step_ms']:.1f}" for rows in (1, 16)]
        yield table_row(f"{name} at 16,384 tokens{what}, ms", *found, "")
    many, few = other["ours, graph", 128], other["DynamicCache", 16]
    yield f"({many['cache_gb']:.0f} GB) make {many['tokens_per_s']:,.0f} tokens a second"
    yield f"({few['cache_gb']:.0f} GB) {few['tokens_per_s']:.0f}."
    first = {(x["cache"], x["tokens"]): x["first_token_s"] for x in H200["prompts"]}
    more = [f"{100 * (first['ours', n] / first['DynamicCache', n] - 1):.0f} %" for n in (8192, 32_768)]
    yield f"{more[0]} and {more[1]} longer than with DynamicCache"


def targets():
    shares = shares_of_copy(H100)
    assert shares[0] < 80 < shares[1]
    text = f"{shares[0]:.0f} % at 32 rows of 1,024 slots, {shares[1]:.0f} % at 256"
    yield table_row("attention at 80 % of a copy's rate at large loads", text, "at 256 rows")
    taken = {(x["rows"], x["budget"]): {k: statistics.median(v) for k, v in x["seconds"].items()} for x in H100["cuts"]}
    times = [x["R-KV's form"] / x["ours"] for x in taken.values()]
    yield table_row("cuts 50 times as fast as R-KV's form", f"{min(times):.1f} to {max(times):.1f} times", "no")
    layers = 32 * taken[32, 1024]["ours"] * 1e3
    one, other = ({(x["cache"], x["rows"]): x for x in data["decode"]} for data in (H100, H200))
    yield (
        f"{layers:.0f} ms for 32 layers in 128 steps, 1 % if a step took {layers / 1.28:.0f} ms; H200, 16 rows in"
        f" graphs: {other['ours, graph', 16]['step_ms']:.1f} | no |"
    )

    def longest(x):
        return f"{x['longest_ms'] / x['median_ms']:.1f}"

    graphs = [longest(other["ours, graph", rows]) for rows in (1, 16, 128)]
    yield (
        f"in graphs {longest(one['ours, graph', 1])} at 1 row; without {longest(one['ours', 16])} at 16. H200 in graphs"
        f" {graphs[0]}, {graphs[1]} and {graphs[2]} at 1, 16 and 128 rows, captures among them | in one case |"
    )
    many, few = other["ours, graph", 128], other["DynamicCache", 16]
    assert many["tokens_per_s"] > 5 * few["tokens_per_s"] and many["cache_gb"] < few["cache_gb"]
    yield (
        f"H200: {many['tokens_per_s']:,.0f} with {many['cache_gb']:.0f} GB, {few['tokens_per_s']:.0f} with"
        f" {few['cache_gb']:.0f} GB | yes |"
    )
    single = [other[name, 1]["step_ms"] for name in ("ours", "ours, graph", "DynamicCache", "StaticCache")]
    assert max(single[:2]) < min(single[2:])
    yield (
        f"H200: {single[0]:.1f} ms a step, {single[1]:.1f} in graphs; DynamicCache {single[2]:.1f}, StaticCache"
        f" {single[3]:.1f} | yes |"
    )
    less, more = sorted(100 * x for x in longer("step_ms"))
    assert more < 5
    text = f"H200, small model: {less:.0f} to {more:.0f} % of the mean; attention and append alone {gathering():.0f} %"
    yield table_row("`h2o`'s step at most 5 % longer than `rkv`'s", text, "yes")


def longer(figure):
    """What h2o's steps of a small model take longer than rkv's, by rows."""
    of = {(x["cache"], x["rows"]): x[figure] for x in NEWER["steps"]}
    return [of["ours, h2o", rows] / of["ours, rkv", rows] - 1 for rows in (32, 192)]


def gathering():
    """Percent that a layer's step takes longer where attention gathers statistics."""
    of = {x["scorer"]: sum(x["step"].values()) for x in NEWER["kernels"] if x["rows"] == 32}
    more = {round(100 * (of[name] / of["rkv"] - 1)) for name in ("h2o", "lazy")}
    assert len(more) == 1
    return more.pop()


def newer():
    of = {(x["cache"], x["rows"]): x for x in NEWER["steps"]}
    for rows in (32, 192):
        found = [of[f"ours, {name}", rows] for name in ("rkv", "h2o", "full")]
        yield table_row(str(rows), *(f"{x['step_ms']:.2f} / {x['median_ms']:.2f}" for x in found))
    mean, medians = (sorted(round(100 * x) for x in longer(figure)) for figure in ("step_ms", "median_ms"))
    (median,) = set(medians)
    yield f"costs a step {mean[0]} to {mean[1]} % of its mean, {median} % of its median"
    yield f"attention and append of a layer take {gathering()} % longer with them, whole steps of a small model"
    yield f"whole steps of a small model {mean[0]} to {mean[1]} %"
    kernels = by_scorer(NEWER)
    step, cut = ([sum(kernels["rkv", rows][what].values()) for rows in (1, 32, 256)] for what in ("step", "cut"))
    yield f"a step of `rkv` takes {step[0]:.0f}, {step[1]:.0f} and {step[2]:.0f} us at 1, 32 and 256 rows"
    yield f"a cut {cut[0]:,.0f}, {cut[1]:,.0f} and {cut[2]:,.0f}"
    more = sum(kernels["h2o", 32]["step"].values())
    yield f"`h2o` or `lazy` {more:.0f} us instead of {step[1]:.0f} at 32 rows ({gathering()} % longer)"
    yield f"Of the cut at 32 rows `similar_matrix` is {us(kernels['rkv', 32]['cut'], 'similar_matrix'):.0f} us"
    yield from attention_table(in_graphs(NEWER))
    shares, rate = shares_of_copy(NEWER), f"% of a copy's rate ({NEWER['copy_bytes_per_second'] / 1e12:.2f} TB/s)"
    yield f"at {shares[0]:.0f} {rate} at 32 rows of 1,024 slots, at {shares[1]:.0f} % at 256"


KINDS = (kernels, attention, attention_since, cuts, decode, targets, newer)
CLAIMS = [(kind.__name__, claim) for kind in KINDS for claim in kind()]


@pytest.mark.parametrize("claim", [pytest.param(x, id=f"{kind}-{i}") for i, (kind, x) in enumerate(CLAIMS)])
def test_the_text_has_the_figure(claim):
    says(ROOT / "docs" / "cuda.md", claim)
