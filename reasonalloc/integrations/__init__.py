"""The library inside other projects: lm-evaluation-harness, transformers' Hub route for generation."""
