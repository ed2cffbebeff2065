"""The calibration of ledger-135m that table.yaml gives TriAttention:

    python benchmarks/studies/calibrate.py

Queries are measured on worked answers of 16 problems behind their prompts; the problems are of the setting that the
table has, of a seed of their own.
"""

from __future__ import annotations

from pathlib import Path

import reasonalloc as ra
from reasonalloc.hf.tokens import encode_prompt
from reasonalloc.lab.models import REASONER
from reasonalloc.lab.tasks import items

FILE = Path(__file__).with_name("triattention.safetensors")
SETTING, PROBLEMS, SEED = "doubting", 16, 20002


def main() -> None:
    model, tokenizer = ra.load(REASONER, dtype="bfloat16")  # table.yaml's: merged in float32 it has other weights
    texts = []
    for item in items("ledger", count=PROBLEMS, seed=SEED, settings=[SETTING]):
        prompt = tokenizer.decode(encode_prompt(tokenizer, item.prompt, "cpu")[0])
        texts.append(prompt + item.chain)
    found = ra.calibrate(model, tokenizer, texts, for_="triattention")
    found.save(FILE)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes, {len(texts)} texts")


if __name__ == "__main__":
    main()
