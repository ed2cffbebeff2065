"""ledger-135m: a LoRA adapter on SmolLM2-135M-Instruct that reasons about who owns how many, for studies of
`reasonalloc` that need no model hub. reasonalloc finds it by itself: `reasonalloc.load("ledger-135m")`."""

from pathlib import Path

FOLDER = Path(__file__).parent / "ledger-135m"
