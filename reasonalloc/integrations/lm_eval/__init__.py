"""lm-evaluation-harness: the model "reasonalloc", `lm_eval --model reasonalloc --model_args pretrained=...,budget=...`.

Releases of lm_eval after 0.4.13 find it by its entry point; `python -m reasonalloc.integrations.lm_eval` is the same
command for all releases. In Python, `import reasonalloc.integrations.lm_eval.model` registers it.
"""
