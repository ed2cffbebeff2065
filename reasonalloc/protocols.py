"""What the library asks of a model and of a tokenizer: transformers' own classes have it, and so may others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class TextConfig(Protocol):
    """The shape of a decoder, as transformers' configs say it."""

    model_type: str
    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int
    vocab_size: int


class ModelConfig(Protocol):
    """A model's config; `get_text_config` is the decoder's own where the model has several."""

    _attn_implementation: str | None

    def get_text_config(self, decoder: bool = ...) -> TextConfig: ...


class Output(Protocol):
    """What a forward pass returns. logits: [rows, kept tokens, V]."""

    logits: torch.Tensor


class Model(Protocol):
    """A causal language model of transformers."""

    config: Any  # a ModelConfig with fields that differ from architecture to architecture
    generation_config: Any

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, **inputs: Any) -> Output: ...

    def forward(self, **inputs: Any) -> Output: ...

    def generate(self, **arguments: Any) -> Any: ...

    def eval(self) -> object: ...

    def get_decoder(self) -> Callable[..., Any]: ...

    def get_input_embeddings(self) -> torch.nn.Module: ...

    def get_output_embeddings(self) -> Callable[..., Any]: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def buffers(self) -> Iterator[torch.Tensor]: ...

    def set_attn_implementation(self, name: str) -> None: ...

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, Any]]: ...  # each with attributes of its own

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...


class Encoding(Protocol):
    """What a tokenizer makes of a text. input_ids: a list, or [1, n] with return_tensors="pt"."""

    input_ids: Any


class Tokenizer(Protocol):
    """A tokenizer of transformers. A chat template and a vocabulary are used where they are there."""

    eos_token_id: int | None
    pad_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Encoding: ...

    def decode(self, token_ids: list[int], **options: Any) -> Any: ...  # a text; transformers also takes several

    def get_vocab(self) -> Mapping[str, int]: ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...
