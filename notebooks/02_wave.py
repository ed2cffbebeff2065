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
# # The reasoning wave
#
# Do all layers need the same amount of cache? For each layer, count the tokens that hold 93 % of the attention of the
# newest queries: its *demand*. Some layers look at a few tokens, others spread over the whole chain. The row of demands
# is the model's reasoning wave, and ReasonAlloc (arXiv 2606.11164) gives the layers their budgets by it.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

import reasonalloc as ra
from reasonalloc.lab.tasks import items

SMALL = os.environ.get("REASONALLOC_NOTEBOOK_SIZE") == "small"  # as the tests run it: quick, and no result
MODEL = os.environ.get("REASONALLOC_NOTEBOOK_MODEL", "ledger-135m")  # or "smollm2", a hub name, a folder
PROMPTS, TOKENS, BUDGET = (2, 32, 32) if SMALL else (4, 256, 128)

OUT = Path("notebooks-out")
OUT.mkdir(exist_ok=True)
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 120})

# %% [markdown]
# ## Measuring it, once for a model
#
# `ra.profile` lets the model write a chain for each of at most 8 prompts, and measures on these. The profile is a small
# JSON file; it knows the model's shape and is refused by another one.

# %%
model, tokenizer = ra.load(MODEL)
every = items("ledger", count=PROMPTS + 1, settings=["restated"])
profile = ra.profile(model, tokenizer, [x.prompt for x in every[:PROMPTS]], max_new_tokens=TOKENS, progress=False)
profile.save(OUT / "wave.json")
profile = ra.WaveProfile.load(OUT / "wave.json")

picture = profile.plot(name=MODEL)
picture.set_dpi(80)
display(picture)

# %% [markdown]
# ## From demand to slots
#
# Demands are noisy and lie far apart. `robustify` takes their square root, scales it to the budget, clips it to 0.25 to
# 2 times the mean, and rounds so that the whole numbers sum to the total.

# %%
heads, layers = profile.model["kv_heads"], len(profile.layers)


def slots(wave):
    """Slots of a KV head in each layer."""
    return ra.allocate.robustify(np.array(wave.demand), BUDGET * heads * layers) / heads


print(f"demand: {min(profile.demand):.0f} to {max(profile.demand):.0f} tokens")
print(f"slots of a head: {slots(profile).min():.0f} to {slots(profile).max():.0f}, mean {slots(profile).mean():.1f}")

# %% [markdown]
# ## Is it the model's, or the prompt's?
#
# The same measurement on two single prompts: one more of this task, and a problem of MATH-500. If the waves agree, one
# profile serves everything. The number printed is the share of the budget that lies in other layers by the other wave.

# %%
others = {
    "one other ledger problem": every[PROMPTS].prompt,
    "one problem of MATH-500": items("math500", count=1)[0].prompt,
}
waves = {f"{PROMPTS} ledger problems": profile}
for name, prompt in others.items():
    waves[name] = ra.profile(model, tokenizer, [prompt], max_new_tokens=TOKENS, progress=False)
    moved = np.abs(slots(waves[name]) - slots(profile)).sum() / 2 / slots(profile).sum()
    print(f"{name}: {moved:.1%} of the slots would lie in other layers")

# %% [markdown]
# ## The picture
#
# Above, the three waves, each over its own mean, since chains of different lengths have demands of different sizes.
# Below, the slots that follow from the first of them.

# %%
figure, (above, below) = plt.subplots(2, 1, figsize=(8.5, 6), sharex=True, layout="constrained")
for (name, wave), color in zip(waves.items(), ("#3b6ea5", "#55a868", "#c44e52"), strict=True):
    above.plot(wave.layers, np.array(wave.demand) / np.mean(wave.demand), "o-", markersize=4, color=color, label=name)
above.axhline(1, color="#888888", linewidth=0.8, linestyle="--")
above.set(ylabel="demand\n(over the mean of the layers)", title=f"The reasoning wave of {MODEL}", ylim=(0, None))
above.legend()
below.bar(profile.layers, slots(profile), color="#3b6ea5", width=0.8)
for bound, text in ((0.25, "least"), (1, "mean"), (2, "most")):
    below.axhline(bound * BUDGET, color="#888888", linewidth=0.8, linestyle="--")
    below.annotate(text, (1.005, bound * BUDGET), xycoords=("axes fraction", "data"), va="center")
below.margins(x=0.01)
below.set(xlabel="layer", ylabel="slots of a KV head", title=f"Budgets that follow from it, {BUDGET} on average")
plt.show()
