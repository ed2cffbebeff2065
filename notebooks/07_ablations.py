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
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Image, display

from reasonalloc.lab import plots
from reasonalloc.lab.evaluate.ablations import ABLATIONS
from reasonalloc.lab.evaluate.summary import Summary

PLACES = [Path("benchmarks/results/ablations"), Path("../benchmarks/results/ablations"), Path("ablations-out")]
FOLDER = next((x for x in PLACES if x.is_dir()), PLACES[0])  # set your own here
OPTIONS = f"--output {FOLDER}"  # and, for the folder of the repository, those of its other results (README)
OUT = Path("notebooks-out/ablations")

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 120})

# %% [markdown]
# ## What is there

# %%
results = {}
for name, ablation in ABLATIONS.items():
    path = FOLDER / f"{name}.json"
    if path.is_file():
        results[name] = Summary.load(path)
        rows = results[name].rows
        print(f"{name:10} {ablation.question}  {len(rows)} cells, {rows[0].problems} problems")
    else:
        print(f"{name:10} {ablation.question}  MISSING, make it with: reasonalloc ablate {name} {OPTIONS}")

# %% [markdown]
# Warnings that the results carry, if any: a full cache that does not score as it should makes the rest worthless.

# %%
for name, result in results.items():
    for warning in result.warnings:
        print(f"{name}: {warning}")

# %% [markdown]
# ## One by one
#
# Each row is a cell, with the 95 % bootstrap interval over problems; the dashed lines are the full cache and R-KV. The
# number beside it is the p of the difference to R-KV (a sign test on the problems' means), not corrected for how
# many cells are looked at. On the right the length of the chains: what forgets repeats itself until it is cut off.

# %%
for name, result in results.items():
    picture = OUT / f"{name}.png"
    plots.cells(result, picture, f"{name}: {ABLATIONS[name].question}")
    display(Image(picture, width=900))

# %% [markdown]
# ## The picture
#
# All of them together, each cell once: its difference to R-KV at the same budget, on the same problems, whose number
# stands behind its name. What stands clear of zero is worth something; the rest could be chance, and of many rows that
# are worth nothing one in twenty stands clear as well.

# %%
found = {}
for name, result in results.items():
    for row in result.rows:
        for pair in row.against:
            if pair.against.startswith("rkv") and row.method != "full":
                found.setdefault((row.cell, row.problems), (f"{name}: {row.cell} ({row.problems})", pair.difference))
pairs = list(found.values())
if pairs:
    figure, axis = plt.subplots(figsize=(8, 1 + 0.24 * len(pairs)), layout="constrained")
    for i, (_, difference) in enumerate(pairs):
        if difference.low is not None:
            axis.plot([100 * difference.low, 100 * difference.high], [i, i], color="#3b6ea5", linewidth=1.5)
        axis.plot(100 * difference.mean, i, "o", color="#3b6ea5", markersize=4)
    axis.axvline(0, color="#c44e52", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(pairs)), [x for x, _ in pairs], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="accuracy less R-KV's (percentage points, 95 % interval)", title="What each cell is worth")
    plt.show()
else:
    print(f"No result in {FOLDER}: run one of the commands above, then this notebook again.")
