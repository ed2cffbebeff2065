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
# # Write your own method
#
# A method is a scorer, a layer allocator, a head allocator and a schedule. Replace the part that you have an idea for;
# the cache, the eviction, batches, evaluation and the command line work with it at once. Here: does attention alone say
# which token matters, or should it be weighted by how large the token's value is (as in VATP, arXiv 2406.12335)?

# %%
import os
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Image, Markdown, display

import reasonalloc as ra
from reasonalloc.hf.decode import Sampling
from reasonalloc.hf.tokens import encode_prompt
from reasonalloc.lab import plots, tasks
from reasonalloc.lab.evaluate import evaluate_fidelity
from reasonalloc.lab.evaluate.accuracy import cells
from reasonalloc.lab.evaluate.study import Study
from reasonalloc.lab.evaluate.texts import Text
from reasonalloc.lab.evaluate.workers import Source
from reasonalloc.lab.tasks import ledger

SMALL = os.environ.get("REASONALLOC_NOTEBOOK_SIZE") == "small"  # as the tests run it: quick, and no result
MODEL = os.environ.get("REASONALLOC_NOTEBOOK_MODEL", "ledger-135m")  # or "smollm2", a hub name, a folder
TEXTS, PROBLEMS, TOKENS, BUDGETS = (2, 2, 24, (16, 32)) if SMALL else (2, 8, 512, (192, 256))
INTERVAL = 16 if SMALL else 64

OUT = Path("notebooks-out")
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 120})

# %% [markdown]
# ## The method
#
# `score` is given one KV head at the moment of a cut (`ra.HeadView`: its keys, values, positions, and the queries of
# the newest tokens) and returns a number for each token older than the window; higher stays.


# %%
@ra.register("value-aware")
@dataclass(frozen=True)
class ValueAware(ra.Method):
    """Attention of the newest queries, weighted by the L1 norm of the value."""

    power: float = 1.0  # Config(options={"power": 0.0}) is attention alone

    def score(self, view: ra.HeadView):
        older = slice(None, -view.window)
        logits = view.queries @ view.keys[older].T * view.scale  # [group, window, n - window]
        attention = logits.softmax(-1).mean((0, 1))
        return attention * view.values[older].norm(p=1, dim=-1) ** self.power


METHODS = ("value-aware", "rkv")

# %% [markdown]
# ## First test: fidelity
#
# The model reads a problem and its reference chain, token by token, and is asked at each how its next-token
# distribution differs from the full cache's. That takes one chain to say something, where accuracy takes hundreds.

# %%
study = Study(
    folder=OUT / ("own-method-small" if SMALL else "own-method"),
    source=Source(MODEL, "bfloat16"),
    task="ledger",
    items=tasks.items("ledger", count=PROBLEMS, settings=["plain"]),
    sampling=Sampling(max_new_tokens=TOKENS),
    batch_size=PROBLEMS,
)
model, tokenizer = study.model
texts = [
    Text(
        x.id,
        encode_prompt(tokenizer, x.prompt, "cpu")[0],
        tokenizer(x.chain, return_tensors="pt", add_special_tokens=False).input_ids[0, : min(TOKENS, 256)],
    )
    for x in ledger.problems(TEXTS, "notebook", ledger.GRID["plain"])
]
base = ra.Config(method="full", interval=INTERVAL, keep_prompt=True)  # questions ask for what is in the prompt
wanted = cells(METHODS, BUDGETS, [], base)
fidelity = evaluate_fidelity(model, texts, [x.config for x in wanted])

plots.fidelity(fidelity, OUT / "own-method-fidelity.png")
display(Image(OUT / "own-method-fidelity.png"))

# %% [markdown]
# ## Second test: answers
#
# The same two at the larger budget, on a few problems that the model answers on its own. A few: this shows how it is
# done, and whether something is badly wrong.

# %%
asked = cells(("full", *METHODS), BUDGETS[-1:], [], base)
study.run(asked, lambda done, total: print(f"\r{done} of {total} chains", end=""))
summary = study.summary(asked)
display(Markdown(summary.markdown()))

# %% [markdown]
# ## The picture
#
# Left, how far the next token's distribution moves, each thin line one text; right, what becomes of the answers.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(3, 2))
colors = {"full": "#888888", "value-aware": "#3b6ea5", "rkv": "#c44e52"}
for method in METHODS:
    points = [x for x in fidelity.points if x.method == method]
    for i in range(len(texts)):
        left.plot(BUDGETS, [p.problems[i]["kl"] for p in points], color=colors[method], linewidth=0.8, alpha=0.4)
    left.plot(BUDGETS, [p.kl.mean for p in points], "o-", color=colors[method], label=method)
left.set(xlabel="budget (slots of a KV head)", ylabel="KL(full || compressed), nats a token", ylim=(0, None))
left.set(title=f"Fidelity on {TEXTS} texts", xticks=BUDGETS)
left.legend()
for i, row in enumerate(summary.rows):
    low, high = 100 * (row.accuracy.low or 0), 100 * (row.accuracy.high or 0)
    right.bar(i, 100 * row.accuracy.mean, color=colors[row.method], width=0.6, alpha=0.85)
    right.plot([i, i], [low, high], color="black", linewidth=1)
right.set_xticks(range(len(summary.rows)), [x.cell for x in summary.rows])
right.set(ylabel="accuracy (%), 95 % interval", ylim=(0, 103), title=f"Answers to {PROBLEMS} problems")
plt.show()
