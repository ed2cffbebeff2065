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
# # Quickstart
#
# A reasoning model writes a long chain, and each of its tokens stays in the key-value cache. What happens if the cache
# may not grow? Here a small model answers one problem twice: with the full cache, and with one that is cut every 128
# tokens to 128 slots for each KV head (a slot is one token of one head).
#
# The model is `ledger-135m`, SmolLM2-135M trained to reason about who owns how many, so its answers can be checked.

# %%
import os

import matplotlib.pyplot as plt

import reasonalloc as ra
from reasonalloc.lab.tasks import items

SMALL = os.environ.get("REASONALLOC_NOTEBOOK_SIZE") == "small"  # as the tests run it: quick, and no result
MODEL = os.environ.get("REASONALLOC_NOTEBOOK_MODEL", "ledger-135m")  # or "smollm2", a hub name, a folder
TOKENS, BUDGET = (160, 64) if SMALL else (1200, 128)

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
plt.rcParams.update({"legend.frameon": False, "figure.dpi": 120})

# %% [markdown]
# ## A model and a problem
#
# `ra.load` gives an ordinary transformers model and its tokenizer.

# %%
model, tokenizer = ra.load(MODEL)
problem = items("ledger", count=1, settings=["restated"])[0]
if tokenizer.chat_template:
    chat = [{"role": "user", "content": problem.prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
else:
    inputs = tokenizer(problem.prompt, return_tensors="pt")
prompt = inputs["input_ids"].shape[1]
print(f"{MODEL}, {prompt} tokens of prompt; the answers are {', '.join(problem.answers)}\n\n{problem.prompt}")

# %% [markdown]
# ## The same `generate`, twice
#
# Inside `ra.install` every `generate` gets a cache as the config says; afterwards the model is as it was. A streamer
# sees each token as it comes, and notes what the cache weighs then.


# %%
class Scales:
    """Is handed each new token by `generate`."""

    def __init__(self, session):
        self.session, self.tokens, self.mib = session, [], []

    def put(self, _):
        cache = self.session.last_cache
        self.tokens.append(cache.get_seq_length())
        self.mib.append(cache.stats()["bytes"] / 2**20)

    def end(self):
        pass


def answer(config):
    with ra.install(model, config) as session:
        scales = Scales(session)
        out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, streamer=scales)
    return out[0, prompt:].tolist(), scales, session.last_cache.stats()


full, full_scales, full_stats = answer(ra.Config(method="full"))
short, short_scales, short_stats = answer(ra.Config(method="reasonalloc", budget=BUDGET))

# %% [markdown]
# ## What the answers say
#
# Eviction changes what the model sees, so from some token on the chains may differ. What counts is the boxes.

# %%
differ = next((i for i, (a, b) in enumerate(zip(full, short, strict=False)) if a != b), min(len(full), len(short)))
for name, chain in (("full cache", full), (f"budget {BUDGET}", short)):
    text = tokenizer.decode(chain, skip_special_tokens=True)
    print(f"--- {name}: {len(chain)} tokens; it ends\n{text[-300:]}\n")
print(f"The first {differ} tokens are the same. The answers are {', '.join(problem.answers)}.")

# %% [markdown]
# ## What the cache did
#
# `stats()` has bytes, slots and budgets of every head, what was evicted, and where the time went.

# %%
for name, stats in (("full cache", full_stats), (f"budget {BUDGET}", short_stats)):
    now, peak, mean = (stats[key] / 2**20 for key in ("bytes", "peak_bytes", "mean_bytes"))
    print(f"{name}: {now:.1f} MiB at the end, {peak:.1f} at its peak, {mean:.1f} on average over the chain")
    print(f"  {stats['ratio']:.1%} of the slots kept, {stats['evicted']:,} evicted in {stats['routings']} cuts", end="")
    print(f", which held {stats['lost_mass']:.1%} of the newest query's attention; wave: {stats['wave']}")

# %% [markdown]
# ## The picture
#
# The full cache grows with each token. The other one grows for 128 tokens, is cut, and grows again: its size does not
# depend on how long the model thinks.

# %%
figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.plot(full_scales.tokens, full_scales.mib, color="#888888", label="full cache")
axis.plot(short_scales.tokens, short_scales.mib, color="#3b6ea5", label=f"ReasonAlloc, budget {BUDGET}")
axis.fill_between(short_scales.tokens, short_scales.mib, color="#3b6ea5", alpha=0.12, linewidth=0)
axis.axvline(prompt, color="black", linewidth=0.8, linestyle=":")
axis.annotate("prompt ends", (prompt, 0.03), (6, 0), ("data", "axes fraction"), textcoords="offset points")
axis.set(xlabel="tokens of the sequence", ylabel="cache (MiB)", ylim=(0, None), title=f"{MODEL} on one problem")
axis.legend(loc="upper left")
plt.show()
