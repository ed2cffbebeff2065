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
# # Speed and memory
#
# What does a decode step take, and what does the cache weigh, as the chain grows? Measured here, on this machine: each
# cache is filled with real keys and values up to a length, then decodes, all of them in turn, since machines are noisy.
# The parts are those of `reasonalloc bench`, which has many more figures and checks each result before it is timed.

# %%
import os

import matplotlib.pyplot as plt
import torch

from reasonalloc.lab import models
from reasonalloc.lab.bench.decoding import subject
from reasonalloc.lab.bench.steps import step_times

SMALL = os.environ.get("REASONALLOC_NOTEBOOK_SIZE") == "small"  # as the tests run it: quick, and no result
MODEL = os.environ.get("REASONALLOC_NOTEBOOK_MODEL", "ledger-135m")  # or "smollm2", a hub name, a folder
BATCH, LENGTHS, ROUNDS = (2, (64, 128), 2) if SMALL else (4, (512, 1024, 2048, 4096), 4)
CACHES = {
    "dynamic": "transformers DynamicCache",
    "static": "transformers StaticCache",
    "full": "ours, nothing evicted",
    "reasonalloc-256": "ours, budget 256",
}

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 120})

# %% [markdown]
# ## Measuring
#
# `subject` is the model twice, sharing its weights: with stock attention and with ours, and the keys and values of a
# real text. A budget's step is the mean over a whole interval of 128 steps, so the cut is in it.

# %%
model, tokenizer, label = models.load(MODEL)
two = subject(model, tokenizer, label, tokens=min(1024, LENGTHS[-1]))
rows = []
for row in step_times(two, [BATCH], LENGTHS, tuple(CACHES), ROUNDS):
    rows.append(row)
    print(f"{row['length']} tokens: " + ", ".join(f"{k} {1e3 * s:.1f} ms" for k, s in row["step_s"].items()))

# %% [markdown]
# ## Which is how much?

# %%
last = rows[-1]
for name, title in CACHES.items():
    seconds, size = last["step_s"][name], last["cache_bytes"][name] / 2**20
    print(f"{title:28} {BATCH / seconds:7.1f} tokens/s   {size:8.1f} MiB   at {last['length']} tokens, batch {BATCH}")

# %% [markdown]
# ## The picture
#
# A full cache costs memory and time with each token. With a budget both lines go flat. Where the weights take most of
# a step, as in a small model at a small batch, memory is what is won; time follows with longer chains and larger
# batches.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
styles = (("#bbbbbb", "s--"), ("#777777", "s--"), ("#55a868", "o-"), ("#3b6ea5", "o-"))
for (name, title), (color, style) in zip(CACHES.items(), styles, strict=True):
    left.plot(LENGTHS, [1e3 * r["step_s"][name] for r in rows], style, color=color, label=title, markersize=5)
    right.plot(LENGTHS, [r["cache_bytes"][name] / 2**20 for r in rows], style, color=color, markersize=5)
left.set(xlabel="length of the chain (tokens)", ylabel="one decode step (ms)", ylim=(0, None), title="Time")
right.set(xlabel="length of the chain (tokens)", ylabel="cache of all rows (MiB)", ylim=(0, None), title="Memory")
for axis in (left, right):
    axis.set_xticks(LENGTHS)
threads = torch.get_num_threads()
figure.suptitle(f"{label}, {model.dtype}, batch {BATCH}, {threads} thread{'s' if threads > 1 else ''}")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()
