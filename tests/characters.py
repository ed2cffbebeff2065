"""A tokenizer that loaders, in processes of their own, can import."""

from __future__ import annotations

from types import SimpleNamespace

import torch


class Characters:
    """A tokenizer: a character is a token."""

    chat_template = None
    eos_token_id, pad_token_id = 1, 0

    def __call__(self, text, return_tensors=None, add_special_tokens=True):
        ids = [2 + ord(x) % 90 for x in text]
        return SimpleNamespace(input_ids=torch.tensor([ids]) if return_tensors else ids)
