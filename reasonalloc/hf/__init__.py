"""The transformers side: a Cache, its layers, the attention function, switching a model over."""
