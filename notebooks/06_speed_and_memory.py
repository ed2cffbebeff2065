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
# What does a decode step take, and what does the cache weigh, as the chain grows? Measured here, on this machine,
# simply: `reasonalloc bench` has many more figures, takes its contenders in turn, and checks each result before it is
# timed.

# %%
import os
import time

import matplotlib.pyplot as plt
import torch
from transformers import DynamicCache

import reasonalloc as ra

SMALL = os.environ.get("REASONALLOC_NOTEBOOK_SIZE") == "small"  # as the tests run it: quick, and no result
MODEL = os.environ.get("REASONALLOC_NOTEBOOK_MODEL", "ledger-135m")  # or "smollm2", a hub name, a folder
BATCH, LENGTHS, STEPS = (2, (64, 128), 16) if SMALL else (4, (512, 1024, 2048), 64)
BUDGET = 32 if SMALL else 256

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 80})

# %% [markdown]
# ## Measuring
#
# Each cache is filled up to a length, then the steps are timed: as many as there are between two cuts, so that one
# cut is among them. Which tokens they are does not matter for time and bytes. Time is that of the processor, on one
# thread, so that other work on the machine counts little.

# %%
torch.set_num_threads(1)
model, _ = ra.load(MODEL)
ids = torch.randint(3, model.config.vocab_size, (BATCH, LENGTHS[-1] + STEPS), generator=torch.manual_seed(0))
CACHES = {
    "transformers DynamicCache": lambda: DynamicCache(config=model.config),
    "ours, nothing evicted": lambda: ra.ReasonAllocCache(model, ra.Config(method="full")),
    f"ours, budget {BUDGET}": lambda: ra.ReasonAllocCache(model, ra.Config("rkv", budget=BUDGET, interval=STEPS)),
}


def weight(cache):
    """Bytes of keys and values."""
    if isinstance(cache, ra.ReasonAllocCache):
        return cache.stats()["bytes"]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@torch.no_grad()
def measured(cache):
    """(seconds of a step, bytes) at each length."""
    found, done = [], 0
    for length in LENGTHS:
        while done < length:  # in pieces: a long prompt at once takes much memory
            end = min(done + 256, length)
            model(ids[:, done:end], past_key_values=cache, logits_to_keep=1)
            done = end
        start = time.process_time()
        for _ in range(STEPS):
            model(ids[:, done : done + 1], past_key_values=cache)
            done += 1
        found.append(((time.process_time() - start) / STEPS, weight(cache)))
    return found


rows = {}
for name, make in CACHES.items():
    rows[name] = measured(make())
    ra.uninstall(model)  # a cache of ours has put its attention into the model
    for length, (seconds, size) in zip(LENGTHS, rows[name], strict=True):
        speed = f"{1e3 * seconds:6.1f} ms, {BATCH / seconds:6.1f} tokens/s of one core"
        print(f"{name:27} {length:5} tokens: {speed}, {size / 2**20:6.1f} MiB")

# %% [markdown]
# ## The picture
#
# A full cache costs memory and time with each token. With a budget both lines go flat. Where the weights take most of
# a step, as in a small model at a small batch, memory is what is won; time follows with longer chains and larger
# batches.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
for (name, points), (color, style) in zip(
    rows.items(), (("#888888", "s--"), ("#55a868", "o-"), ("#3b6ea5", "o-")), strict=True
):
    left.plot(LENGTHS, [1e3 * seconds for seconds, _ in points], style, color=color, label=name, markersize=5)
    right.plot(LENGTHS, [size / 2**20 for _, size in points], style, color=color, markersize=5)
left.set(xlabel="length of the chain (tokens)", ylabel="one decode step (ms of one core)", ylim=(0, None), title="Time")
right.set(xlabel="length of the chain (tokens)", ylabel="cache of all rows (MiB)", ylim=(0, None), title="Memory")
for axis in (left, right):
    axis.set_xticks(LENGTHS)
figure.suptitle(f"{MODEL}, {model.dtype}, batch {BATCH}")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()
