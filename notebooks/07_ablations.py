# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablations
#
# What is each part of the method worth? `reasonalloc ablate NAME` varies one thing around ReasonAlloc at one budget and
# measures the answers. That takes hours, so this notebook runs nothing: it draws the results that lie in a folder, and
# says how to make those that do not.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt

from reasonalloc.evaluate.ablations import ABLATIONS

PLACES = [Path("benchmarks/results/ablations"), Path("../benchmarks/results/ablations"), Path("ablations-out")]
FOLDER = next((x for x in PLACES if x.is_dir()), PLACES[0])  # set your own here

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 120})

# %% [markdown]
# ## What is there

# %%
results = {}
for name, ablation in ABLATIONS.items():
    path = FOLDER / f"{name}.json"
    if path.is_file():
        results[name] = json.loads(path.read_text(encoding="utf-8"))
        rows = results[name]["rows"]
        print(f"{name:10} {ablation.question}  {len(rows)} cells, {rows[0]['problems']} problems")
    else:
        print(f"{name:10} {ablation.question}  MISSING, make it with: reasonalloc ablate {name} --output {FOLDER}")

# %% [markdown]
# Warnings that the results carry, if any: a full cache that does not score as it should makes the rest worthless.

# %%
for name, result in results.items():
    for warning in result["warnings"]:
        print(f"{name}: {warning}")

# %% [markdown]
# ## One by one
#
# Each row is a cell, with the 95 % bootstrap interval over problems; the dashed lines are the full cache and R-KV. The
# number on the right is the p of the difference to R-KV on the same problems (McNemar's exact test).

# %%
COLORS = {"full": "#888888", "rkv": "#c44e52", "reasonalloc": "#3b6ea5"}


def draw(axis, name, result):
    """The cells of one ablation, from top to bottom."""
    rows = result["rows"]
    for i, row in enumerate(rows):
        color, accuracy = COLORS.get(row["method"], "#55a868"), row["accuracy"]
        if accuracy["low"] is not None:
            axis.plot([100 * accuracy["low"], 100 * accuracy["high"]], [i, i], color=color, linewidth=1.5)
        axis.plot(100 * accuracy["mean"], i, "o", color=color)
        if row["cell"] in ("full", rows[1]["cell"]):
            axis.axvline(100 * accuracy["mean"], color=color, linewidth=0.8, linestyle="--", zorder=0)
        for pair in row["against"]:
            if pair["against"].startswith("rkv"):
                where = (1.01, i)  # right of the axes
                axis.annotate(f"p {pair['p']:.2g}", where, xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row["cell"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("accuracy (%)")
    axis.set_title(f"{name}: {ABLATIONS[name].question}", loc="left", fontsize=10)


for name, result in results.items():
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.32 * len(result["rows"])), layout="constrained")
    draw(axis, name, result)
    plt.show()

# %% [markdown]
# ## The picture
#
# All of them together: for each cell its difference to R-KV at the same budget, on the same problems. What stands
# clear of zero is worth something; the rest could be chance.

# %%
pairs = [
    (f"{name}: {row['cell']}", pair["difference"], COLORS.get(row["method"], "#55a868"))
    for name, result in results.items()
    for row in result["rows"]
    for pair in row["against"]
    if pair["against"].startswith("rkv") and row["method"] != "full"
]
if pairs:
    figure, axis = plt.subplots(figsize=(8, 1 + 0.24 * len(pairs)), layout="constrained")
    for i, (_, difference, color) in enumerate(pairs):
        if difference["low"] is not None:
            axis.plot([100 * difference["low"], 100 * difference["high"]], [i, i], color=color, linewidth=1.5)
        axis.plot(100 * difference["mean"], i, "o", color=color, markersize=4)
    axis.axvline(0, color="#c44e52", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(pairs)), [x for x, _, _ in pairs], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="accuracy less R-KV's (percentage points, 95 % interval)", title="What each cell is worth")
    plt.show()
else:
    print(f"No result in {FOLDER}: run one of the commands above, then this notebook again.")
