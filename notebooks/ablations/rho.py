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
# # rho: Does the attention mass that defines a layer's demand matter?
#
# A layer's demand is the number of tokens that hold the share `rho` of its attention; the wave is made of demands.
# Nothing runs here: results are loaded and drawn. `reasonalloc ablate rho` makes them (the README beside the
# results has the options of ours).

# %%
from pathlib import Path

from IPython.display import Image, Markdown, display

from reasonalloc.lab import plots
from reasonalloc.lab.evaluate.summary import Summary

NAME = "rho"
PLACES = [Path(x, "benchmarks/results/ablations") for x in ("", "..", "../..")]
FOLDER = next((x for x in PLACES if x.is_dir()), Path("ablations-out"))  # set your own here

# %% [markdown]
# The full cache and R-KV come first. A difference has the p of a sign test on the problems' means beside it, not
# corrected for how many cells are looked at.

# %%
result = Summary.load(FOLDER / f"{NAME}.json")
display(Markdown(result.markdown()))

# %% [markdown]
# Points are accuracies with their 95 % bootstrap intervals over problems; dashed lines are the full cache and R-KV.

# %%
picture = Path("notebooks-out/ablations") / f"{NAME}.png"
plots.cells(result, picture, "rho: Does the attention mass that defines a layer's demand matter?")
display(Image(picture, width=900))
