"""Forward and backward passes over chains, with the model frozen: gradients reach the gates alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from reasonalloc.hf.tokens import left_padded
from reasonalloc.lab.rlkv.mixed import Mixture, gate_shape, mixing
from reasonalloc.protocols import Model

_CHUNK, _CHUNK_GPU = 256, 2048  # tokens whose logits are there at a time


@dataclass(frozen=True)
class Text:
    """A prompt and its chain, as token ids. place: of the chain in its batch."""

    prompt: tuple[int, ...]
    chain: tuple[int, ...]
    place: int = 0

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.chain)


def micro_batches(sequences: Sequence[Text], rows: int) -> Iterator[list[Text]]:
    """Of like lengths, `rows` at a time."""
    order = sorted(sequences, key=lambda x: (x.tokens, x.place))
    for i in range(0, len(order), rows):
        yield order[i : i + rows]


def check_model(model: Model) -> None:
    """ValueError for a model that these passes do not follow: without a layer that gates could be of, with logits that
    are more than its output matrix times the hidden states, or with an attention that is not `mixing`'s."""
    config = model.config.get_text_config(decoder=True)
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"{type(model).__name__} has {name}, which the training of gates does not follow")
    shape = gate_shape(model)
    if not shape[0]:
        raise ValueError(f"{type(model).__name__} has no layer with full attention: there are no gates to train")
    with mixing(model, Mixture(torch.ones(shape, device=model.device), 0, 1)), torch.no_grad():
        hidden_states(model, [Text((1,), (1,))])  # its attention says what it asks for when it is called


def hidden_states(model: Model, batch: Sequence[Text]) -> torch.Tensor:
    """[rows, n, D] last hidden states; rows are padded on the left."""
    ids, mask = (x.to(model.device) for x in left_padded([[*x.prompt, *x.chain] for x in batch]))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out: torch.Tensor = model.get_decoder()(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    return out


def chain_states(hidden: torch.Tensor, batch: Sequence[Text], ahead: int = 1) -> torch.Tensor:
    """[tokens of all chains, D], row after row. ahead 1: of the tokens before, which predict them; 0: their own."""
    n = hidden.shape[1]
    parts = [hidden[i, n - len(x.chain) - ahead : n - ahead] for i, x in enumerate(batch)]
    return torch.cat(parts)


def logprobs_of(model: Model, states: torch.Tensor, ids: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """[n] log-probability of each id; states: [n, D]."""
    logits = model.get_output_embeddings()(states)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    found: torch.Tensor = logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)
    return found


def backward_policy(
    model: Model,
    batch: Sequence[Text],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    temperature: float = 1.0,
) -> tuple[float, torch.Tensor]:
    """Adds the gradient of a sum of token losses to the gates; (that sum, [n] log-probabilities of the chains' tokens).

    loss: of (log-probabilities, number of each token's row in the batch). Logits are made for a few tokens at a time.
    """
    states = chain_states(hidden_states(model, batch), batch)
    ids = torch.tensor([t for x in batch for t in x.chain], device=states.device)
    rows = torch.tensor([i for i, x in enumerate(batch) for _ in x.chain], device=states.device)
    flat = states.detach().requires_grad_(states.requires_grad)
    total, found = 0.0, []
    size = _CHUNK if states.device.type == "cpu" else _CHUNK_GPU
    for i in range(0, len(ids), size):
        part = slice(i, i + size)
        logprobs = logprobs_of(model, flat[part], ids[part], temperature)
        value = loss(logprobs, rows[part]).sum()
        if value.requires_grad:
            value.backward()
        total += float(value.detach())
        found.append(logprobs.detach())
    if flat.grad is not None:
        states.backward(flat.grad)
    return total, torch.cat(found)
