"""From questions to token ids, alone and in a batch, and the tokens that end a chain."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reasonalloc.files import encoded
from reasonalloc.protocols import Model, Tokenizer


def encode_prompt(tokenizer: Tokenizer, prompt: str, device: torch.device | str) -> torch.Tensor:
    """Token ids [1, n] of a question, in the tokenizer's chat template where it has one.

    Raises ValueError for a text with half of a surrogate pair, which tokenizers have no error of their own for.
    """
    encoded(prompt, "the prompt")
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    else:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
    return ids.to(device)  # type: ignore[no-any-return]


def left_padded(rows: Sequence[Sequence[int] | torch.Tensor], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), [rows, longest]. rows: token ids of each. pad: any token, the mask hides it."""
    longest = max(len(x) for x in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.as_tensor(row)
        mask[i, longest - len(row) :] = 1
    return ids, mask


def ends(model: Model, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a chain, as `generate` takes them: the generation config's, else the tokenizer's."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if given is None:
        given = tokenizer.eos_token_id
    return frozenset([given] if isinstance(given, int) else given or [])
