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
# # Budgets over time
#
# Between layers ReasonAlloc's budgets are fixed by the wave. Between the heads of a layer they follow the chain: at
# each cut the best scores of the layer are pooled, and a head gets as many slots as it has scores among them. Which
# heads win, how does that change, and which tokens survive? A cache with `record=True` keeps a trace that answers this.

# %%
import html
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, display

import reasonalloc as ra
from reasonalloc.lab.tasks import items

SMALL = os.environ.get("REASONALLOC_NOTEBOOK_SIZE") == "small"  # as the tests run it: quick, and no result
MODEL = os.environ.get("REASONALLOC_NOTEBOOK_MODEL", "ledger-135m")  # or "smollm2", a hub name, a folder
TOKENS, BUDGET, INTERVAL = (120, 32, 32) if SMALL else (1200, 96, 64)

OUT = Path("notebooks-out")
OUT.mkdir(exist_ok=True)
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 120})

# %% [markdown]
# ## A chain on record
#
# Cuts come every 64 tokens here instead of 128, for a finer picture. The wave is measured on the prompt, since no
# profile is given.

# %%
model, tokenizer = ra.load(MODEL)
problem = items("ledger", count=1, settings=["restated"])[0]
if tokenizer.chat_template:
    chat = [{"role": "user", "content": problem.prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
else:
    inputs = tokenizer(problem.prompt, return_tensors="pt")
with ra.install(model, ra.Config(budget=BUDGET, interval=INTERVAL), record=True) as session:
    out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)

cache = session.last_cache
trace = cache.trace(out, tokenizer, model_id=MODEL)
trace.save(OUT / "budgets.trace")
print(f"{len(trace.ids)} tokens, {len(trace.cuts)} cuts, {len(trace.layers)} layers of {trace.heads} KV heads")

# %% [markdown]
# `reasonalloc report notebooks-out/budgets.trace` makes a page of it, to move about in. Here the main things by hand.
#
# ## Budgets of every head
#
# Each row is a KV head, each column the time between two cuts. Between layers the colours follow the wave and stay;
# what changes from column to column is the routing between the heads of a layer.

# %%
picture = trace.plot()
picture.set_dpi(80)
display(picture)

# %% [markdown]
# How much of the budget moves from one cut to the next?

# %%
budgets = np.ma.masked_less(trace.budgets.astype(int), 0)  # -1: the layer had nothing to cut yet
moved = np.abs(np.diff(budgets, axis=0)).sum((1, 2)) / 2 / budgets[1:].sum((1, 2))
print(f"from one cut to the next {moved.mean():.1%} of the slots go to another head, at most {moved.max():.1%}")

# %% [markdown]
# ## What is left at the end
#
# The text with each token as dark as the share of heads that still hold it.

# %%
held = trace.held().mean((0, 1))  # [n]
spans = [
    f'<span style="background:rgba(59,110,165,{share:.2f})">{html.escape(piece)}</span>'
    for piece, share in zip(trace.pieces, held, strict=True)
]
display(HTML(f'<div style="white-space:pre-wrap;line-height:1.5">{"".join(spans)}</div>'))

# %% [markdown]
# And by word, without the newest tokens, which have not been through enough cuts to say anything.

# %%
kinds: dict[str, list[float]] = {}
for piece, share in zip(trace.pieces[: -2 * BUDGET], held, strict=False):
    kinds.setdefault(piece.strip() or repr(piece), []).append(share)
often = {kind: np.mean(shares) for kind, shares in kinds.items() if len(shares) >= 5}
for title, reverse in (("kept most", True), ("let go first", False)):
    best = sorted(often, key=often.__getitem__, reverse=reverse)[:8]
    print(f"{title}: " + ", ".join(f"{kind} {often[kind]:.0%}" for kind in best))

# %% [markdown]
# ## The picture
#
# Each row is a cut, each column a token of the sequence, dark to bright the share of all heads that hold it from then
# on. A column that stays bright is a token that heads go on needing; the bright edge is what was written last.

# %%
kept = np.stack([trace.held(int(tokens)).mean((0, 1)) for tokens in trace.cuts])
kept = np.ma.masked_array(kept, np.arange(len(trace.ids)) >= trace.cuts[:, None])
edges = np.append(trace.cuts, len(trace.ids) + 1)

figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
mesh = axis.pcolormesh(np.arange(len(trace.ids) + 1), edges, 100 * kept, cmap="magma", vmin=0, vmax=100)
axis.axvline(trace.prompt, color="#3b6ea5", linewidth=1)
axis.annotate(
    "the prompt\nends here", (trace.prompt, 1), (36, -2), xycoords=("data", "axes fraction"),
    textcoords="offset points", va="top", color="#3b6ea5",
)  # fmt: skip
axis.invert_yaxis()
axis.set(xlabel="position of the token", ylabel="tokens seen at the cut")
axis.set_title(f"What {MODEL} keeps, budget {BUDGET}")
figure.colorbar(mesh, ax=axis, label="heads that hold the token (%)")
plt.show()
