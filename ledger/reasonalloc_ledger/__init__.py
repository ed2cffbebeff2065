"""LoRA adapters on SmolLM2-135M-Instruct, for studies of `reasonalloc` that need no model hub.

ledger-135m reasons about who owns how many, search-135m searches for the numbers that have a sum. reasonalloc finds
them by itself: `reasonalloc.load("ledger-135m")`.
"""
