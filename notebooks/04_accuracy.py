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
# # Accuracy
#
# How small may the cache become before the answers suffer, and does it matter how the slots are shared out? The model
# answers the same problems with each method at each budget; the boxed answers are graded; the intervals are over
# problems. At a size for a notebook: with so few problems the intervals are wide, and they are drawn.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import display

import reasonalloc as ra
from reasonalloc.lab.tasks import items

SMALL = os.environ.get("REASONALLOC_NOTEBOOK_SIZE") == "small"  # as the tests run it: quick, and no result
MODEL = os.environ.get("REASONALLOC_NOTEBOOK_MODEL", "ledger-135m")  # or "smollm2", a hub name, a folder
PROBLEMS, TOKENS, BUDGETS = (2, 24, (24, 48)) if SMALL else (6, 512, (256, 384))
METHODS = ("full", "reasonalloc", "rkv", "streaming")

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 80})

# %% [markdown]
# ## A problem

# %%
problem = items("ledger", count=1, settings=["plain"])[0]
print(problem.prompt, "\n\nanswer:", ", ".join(problem.answers))

# %% [markdown]
# ## Every method at every budget
#
# With a folder every chain is kept: stop this notebook whenever you like and start it again later, or ask for more
# problems. ReasonAlloc's wave is measured on four other problems of the task and lies there too. All methods are cut
# every 128 tokens, StreamingLLM at each one. The prompt is evicted last: a question asks for facts that nothing has
# looked at before, and no score can know of them.

# %%
config = {"keep_prompt": True}
if SMALL:
    config["interval"] = 16
results = ra.evaluate(
    MODEL,
    task="ledger",
    settings=["plain"],
    problems=PROBLEMS,
    methods=METHODS,
    budgets=BUDGETS,
    max_new_tokens=TOKENS,
    batch_size=PROBLEMS,
    config=config,
    folder=Path("notebooks-out") / ("accuracy-small" if SMALL else "accuracy"),
    progress=False,
)
display(results)

# %% [markdown]
# "less full" and "less rkv" are differences on the same problems, with their interval and the p of a permutation test
# on the problems' means.

# %%
picture = results.plot()
picture.set_dpi(80)
display(picture)

# %% [markdown]
# ## The picture
#
# What is bought is memory, so that is the axis: the mean cache of a chain, over its steps, against the answers. Up and
# to the left is better; the band is the full cache.

# %%
figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
colors = dict(zip(METHODS, ("#888888", "#3b6ea5", "#c44e52", "#55a868"), strict=True))
for method in METHODS:
    rows = [x for x in results.rows if x.method == method]
    x = [r.mean_bytes / 2**20 * 1.01 ** METHODS.index(method) for r in rows]  # side by side, so that all can be seen
    y = [100 * r.accuracy.mean for r in rows]
    spans = [(100 * (r.accuracy.low or 0), 100 * (r.accuracy.high or 0)) for r in rows]
    axis.plot(x, y, "o-", color=colors[method], label=method)
    for place, (low, high), row in zip(x, spans, rows, strict=True):
        axis.plot([place, place], [low, high], color=colors[method], linewidth=1, alpha=0.6)
        if row.budget:
            where = (place, 100 * row.accuracy.mean)
            axis.annotate(str(row.budget), where, (4, 4), textcoords="offset points", fontsize=8, color=colors[method])
    if method == "full":
        axis.axhspan(*spans[0], color="#888888", alpha=0.12, linewidth=0)
axis.set(
    xlabel="mean cache of a chain (MiB)",
    ylabel="accuracy (%), 95 % interval",
    ylim=(-3, 103),
    title=f"{MODEL}: {PROBLEMS} problems; the numbers are budgets",
)
axis.legend(loc="lower right")
plt.show()
