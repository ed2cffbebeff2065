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

import matplotlib.pyplot as plt
import torch
from IPython.display import display

import reasonalloc as ra
from reasonalloc.lab.tasks import items

SMALL = os.environ.get("REASONALLOC_NOTEBOOK_SIZE") == "small"  # as the tests run it: quick, and no result
MODEL = os.environ.get("REASONALLOC_NOTEBOOK_MODEL", "ledger-135m")  # or "smollm2", a hub name, a folder
TEXTS, PROBLEMS, TOKENS, BUDGETS = (2, 2, 24, (16, 32)) if SMALL else (2, 8, 512, (192, 256))
INTERVAL = 16 if SMALL else 64

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 80})

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
# The model writes a chain with the full cache, then reads it again token by token with a cache of ours, and we ask at
# each token how far the next one's distribution has moved. One chain says something then, where accuracy takes
# hundreds. A cache of ours is given to the model like any other. (`reasonalloc evaluate fidelity` is this with
# intervals.)

# %%
model, tokenizer = ra.load(MODEL)


def encoded(prompt):
    if not tokenizer.chat_template:
        return tokenizer(prompt, return_tensors="pt").input_ids
    chat = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids


@torch.no_grad()
def log_probs(config, prompt, chain):
    """[tokens of the chain, V] of the model that reads it with this cache."""
    cache = ra.ReasonAllocCache(model, config)
    found = [model(prompt, past_key_values=cache).logits[:, -1]]
    for i in range(chain.shape[1] - 1):
        found.append(model(chain[:, i : i + 1], past_key_values=cache).logits[:, -1])
    ra.uninstall(model)
    return torch.cat(found).log_softmax(-1)


moved = {(method, budget): [] for method in METHODS for budget in BUDGETS}  # KL of each text, mean over its tokens
for problem in items("ledger", count=TEXTS, settings=["plain"], seed=1):
    prompt = encoded(problem.prompt)
    chain = model.generate(prompt, max_new_tokens=min(TOKENS, 256), do_sample=False)[:, prompt.shape[1] :]
    full = log_probs(ra.Config(method="full"), prompt, chain)
    for method, budget in moved:
        config = ra.Config(method=method, budget=budget, interval=INTERVAL, keep_prompt=True)
        ours = log_probs(config, prompt, chain)
        moved[method, budget].append(float((full.exp() * (full - ours)).sum(-1).mean()))
for (method, budget), values in moved.items():
    print(f"{method}, budget {budget}: {sum(values) / len(values):.3f} nats a token")

# %% [markdown]
# ## Second test: answers
#
# The same two at the larger budget, on a few problems that the model answers on its own. A few: this shows how it is
# done, and whether something is badly wrong.

# %%
results = ra.evaluate(
    model,
    tokenizer,
    settings=["plain"],
    problems=PROBLEMS,
    methods=("full", *METHODS),
    budgets=BUDGETS[-1:],
    max_new_tokens=TOKENS,
    config={"interval": INTERVAL, "keep_prompt": True},
    progress=False,
)
display(results)

# %% [markdown]
# ## The picture
#
# Left, how far the next token's distribution moves, each thin line one text; right, what becomes of the answers.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(3, 2))
colors = {"full": "#888888", "value-aware": "#3b6ea5", "rkv": "#c44e52"}
for method in METHODS:
    for i in range(TEXTS):
        left.plot(BUDGETS, [moved[method, b][i] for b in BUDGETS], color=colors[method], linewidth=0.8, alpha=0.4)
    means = [sum(moved[method, b]) / TEXTS for b in BUDGETS]
    left.plot(BUDGETS, means, "o-", color=colors[method], label=method)
left.set(xlabel="budget (slots of a KV head)", ylabel="KL(full || compressed), nats a token", ylim=(0, None))
left.set(title=f"Fidelity on {TEXTS} texts", xticks=BUDGETS)
left.legend()
for i, row in enumerate(results.rows):
    low, high = 100 * (row.accuracy.low or 0), 100 * (row.accuracy.high or 0)
    right.bar(i, 100 * row.accuracy.mean, color=colors[row.method], width=0.6, alpha=0.85)
    right.plot([i, i], [low, high], color="black", linewidth=1)
right.set_xticks(range(len(results.rows)), [x.cell for x in results.rows])
right.set(ylabel="accuracy (%), 95 % interval", ylim=(0, 103), title=f"Answers to {PROBLEMS} problems")
plt.show()
