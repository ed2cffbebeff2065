"""The cells of table.yaml: sizes at which systems take as many bytes as R-KV at its budgets, averaged over a chain.

    python benchmarks/studies/table_budgets.py           # all; some minutes
    python benchmarks/studies/table_budgets.py h2o duo   # these systems

Caches are ours, of a random model with the reasoner's layers and heads that is fed random tokens: which tokens stay is
not the reasoner's choice, but how many slots a layer has, and when it is cut, is the system's rule. Prompt and chain
are as long as those of the full cache on other seeds (rlkv.md).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rlkv import CHAIN, PROMPT
from table import SIZES
from transformers import BatchEncoding, LlamaConfig, LlamaForCausalLM

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.attention import using
from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.evaluate.equal_bytes import nearest, search

REFERENCE = "rkv"
GATES = "benchmarks/results/rlkv"
# Options by label, which is the method's name. Those with gates have a share of local heads in place of a budget.
SYSTEMS: dict[str, dict[str, Any]] = {
    "rkv": {},
    "reasonalloc": {},
    "reasonalloc-wave": {},
    "reasonalloc-route": {},
    "snapkv": {},
    "snapkv-published": {},
    "pyramidkv": {},
    "pyramidkv-published": {},
    "pyramid-rkv": {},
    "adakv": {},
    "adakv-published": {},
    "dynamickv": {},
    "h2o": {},
    "streaming": {},
    "lazyeviction": {},
    "raas": {},
    "vase": {},
    "dkv": {},
    "vatp": {},
    "triattention": {"calibration": "benchmarks/studies/triattention.safetensors"},
    "spans": {},
    "random": {},
    "duo": {"options": {"gates": f"{GATES}/duo/full_attention_heads.tsv"}},
    "rlkv": {"options": {"gates": f"{GATES}/seed0/adapter_weights.tsv"}},
}
WAVE = Path(__file__).parents[1] / "results" / "ablations" / "wave-ledger-4-0.93.json"
STEP = 7  # tokens of a pass; prime to a page's 16, so that pages are seen however full they are
TOLERANCE = 0.003


def random_model() -> LlamaForCausalLM:
    """Layers and heads of SmolLM2-135M, thin otherwise."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=512, hidden_size=72, intermediate_size=64, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, max_position_embeddings=8192,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


class Chains:
    """Mean bytes of a chain's pages over its tokens."""

    def __init__(self) -> None:
        self.model = random_model()
        self.wave = replace(ra.WaveProfile.load(WAVE), model=fingerprint(self.model))
        texts = ["0 1 2 3 4 5 6 7 " * 40]
        self.calibration = ra.calibrate(self.model, _numbers, texts, for_="triattention", progress=False)
        self.tokens = torch.randint(512, (1, PROMPT + CHAIN), generator=torch.Generator().manual_seed(1))

    def bytes(self, settings: dict[str, Any]) -> float:
        if "calibration" in settings:
            settings = {**settings, "calibration": self.calibration}
        config = ra.Config(**settings)
        if config.resolve().needs_wave:
            config = replace(config, profile=self.wave)
        cache, taken = ra.ReasonAllocCache(self.model, config), []
        with torch.no_grad(), using(self.model):
            for piece in (self.tokens[:, :PROMPT], *self.tokens[:, PROMPT:].split(STEP, 1)):
                self.model(piece, **cache_argument(cache), use_cache=True, logits_to_keep=1)
                taken.append(int(cache.page_bytes_by_row().sum()))
        return sum(taken[1:]) / len(taken[1:])


def _numbers(text: str, **_: Any) -> Any:
    return BatchEncoding({"input_ids": torch.tensor([[int(x) for x in text.split()]])})


def sized(method: str, settings: dict[str, Any], size: float) -> dict[str, Any]:
    """size: slots of a head, or the share of heads that hold everything."""
    if "options" in settings:
        return {"method": method, "options": {**settings["options"], "sparsity": round(1 - size, 3)}}
    return {"method": method, **settings, "keep_prompt": True, "budget": round(size)}


def matched(chains: Chains, method: str, settings: dict[str, Any], budget: int, target: float) -> tuple[float, float]:
    """The size that takes `target` bytes, and how far off these are, as a share. budget: where the search starts."""
    gated = "options" in settings
    start, least = (0.3, 0.02) if gated else (budget, 9)
    tries = search(lambda size: chains.bytes(sized(method, settings, size)), target, start, least, not gated, TOLERANCE)
    best = nearest(tries, target)
    return best.size, best.mean_bytes / target - 1


def main() -> None:
    torch.set_num_threads(1)
    chains = Chains()
    targets = {budget: chains.bytes(sized(REFERENCE, {}, budget)) for budget in SIZES}
    for budget, target in targets.items():
        print(f"  # as many bytes as {REFERENCE} at {budget} slots: {target / 2e6:.2f} MB in bfloat16")
        for label, settings in SYSTEMS.items():
            if sys.argv[1:] and label not in sys.argv[1:]:
                continue
            size, off = matched(chains, label, settings, budget, target)
            cell = str(sized(label, settings, size)).replace("'", "").replace("True", "true")
            print(f"  {label}-{budget}: {cell} # {off:+.1%}", flush=True)


if __name__ == "__main__":
    main()
