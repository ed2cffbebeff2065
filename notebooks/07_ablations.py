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
from IPython.display import Markdown, display

import reasonalloc as ra

PLACES = [Path("benchmarks/results/ablations"), Path("../benchmarks/results/ablations"), Path("ablations-out")]
FOLDER = next((x for x in PLACES if x.is_dir()), PLACES[0])  # set your own here

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 70})

# %% [markdown]
# ## What is there

# %%
results = {}
for name, question in ra.ablations().items():
    path = FOLDER / f"{name}.json"
    if path.is_file():
        results[name] = ra.Results.load(path)
        rows = results[name].rows
        print(f"{name:10} {question}  {len(rows)} cells, {rows[0].problems} problems")
    else:
        print(f"{name:10} {question}  MISSING, make it with: reasonalloc ablate {name} --output {FOLDER}")

# %% [markdown]
# Warnings that the results carry, if any: a full cache that does not score as it should makes the rest worthless.

# %%
for name, result in results.items():
    for warning in result.warnings:
        print(f"{name}: {warning}")

# %% [markdown]
# ## One by one
#
# Where a number is varied it is the axis; dashed lines are the full cache and R-KV at the same budget. Elsewhere each
# row is a cell, with the p of its difference to R-KV beside it (permutation test on the problems' means, adjusted by
# Holm for the cells of that ablation). Bars are 95 % intervals over problems. Look at the length of the chains too:
# what forgets repeats itself until it is cut off. The tables are beside the results, `NAME.md`.

# %%
pictures = {}
for name, result in results.items():
    pictures[name] = result.plot(title=f"{name}: {ra.ablations()[name]}", cells=name == "parts")
    pictures[name].set_dpi(70)
    display(pictures[name])

# %% [markdown]
# ## Numbers of one of them

# %%
ONE = "parts"
if ONE in results:
    display(Markdown(results[ONE].markdown()))

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
