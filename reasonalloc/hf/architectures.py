"""Which of transformers' decoders work with the cache, by model_type; `doctor`, the documents and the tests read it.

Found by running `reasonalloc.hf.check.compare` on a small random model of each (tests/test_architectures.py does):
logits are those with transformers' own cache, and a row in a left-padded batch is cut as it is alone. A model that is
not here is tried all the same; what it does that cannot be served is refused by name when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from reasonalloc.protocols import Model

State = Literal["supported", "limited", "refused"]


@dataclass(frozen=True)
class Architecture:
    """state: supported, supported with a note, or refused. note: what to know of it, or the reason."""

    state: State
    note: str = ""


_SUPPORTED = """
    apertus apertus1p5_text arcee aria_text bert bert-generation biogpt bitnet camembert codegen cohere ctrl
    data2vec-text dots1 electra ernie ernie4_5 ernie4_5_moe exaone flex_olmo gemma glm glm4 glm4_moe gpt-sw3 gpt2
    gpt_bigcode gpt_neox gptj granite granitemoe granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3
    hyperclovax internlm3 iquestcoder jais2 laguna llama mellum minimax_m2 minimax_m3_vl_text ministral3 mixtral
    nanochat nemotron olmo olmo2 olmoe opt persimmon phi qwen2 qwen2_moe qwen3 qwen3_moe roberta roberta-prelayernorm
    roc_bert sarvam_moe seed_oss solar_open stablelm starcoder2 xlm-roberta xlm-roberta-xl xmod
"""

_LIMITED = {
    "layers with a sliding window or chunks keep transformers' own cache": """
        afmoe cohere2 cohere2_moe cwm exaone4 exaone_moe flint gemma2 gemma3_text gpt_oss granite_swa granitemoe_swa
        kolibri1 llama4_text mimo_v2_flash ministral mistral modernbert-decoder olmo3 smollm3 vaultgemma
    """,
    "layers with a recurrent state or a convolution keep transformers' own cache": """
        bamba beam granitemoehybrid jamba lara_mini lfm2 lfm2_moe lfm3 nemotron_h olmo_hybrid qwen3_5_moe_text
        qwen3_5_text qwen3_next
    """,
    "keys and values are stored as attention takes them, for each head, not as latents": """
        axk1 deepseek_v2 deepseek_v3 glm4_moe_lite minicpm3 sarvam_mla youtu
    """,
    "keys are stored once for each of a token's experts": "jetmoe",
    "a layer whose keys other layers read keeps every token": "gemma3n_text gemma4_text gemma4_unified_text",
    "with LongRoPE a text must stay on one side of original_max_position_embeddings tokens": "phi3 phimoe",
    "cross-attention needs a cache of its own, which a session adds; with any cache, rows depend on their padding": """
        bart bigbird_pegasus blenderbot blenderbot-small marian mbart pegasus plbart whisper
    """,
}

_REFUSED = {
    "it does not take its attention from transformers' AttentionInterface": """
        big_bird bloom cpmant falcon gpt_neo gpt_neox_japanese megatron-bert mpt mvp openai-gpt rembert roformer rwkv
        trocr xglm xlm
    """,
    "it has no layer with plain full attention: states or windows only": """
        falcon_mamba inkling2_loop_text inkling2_text inkling_text mamba mamba2 recurrent_gemma
    """,
    "its attention layers hold a recurrent state too": "falcon_h1 zamba zamba2",
    "an index chooses the tokens that its attention reads": "axk2 deepseek_v32 deepseek_v4 glm_moe_dsa hy_v4",
    "it reads the keys of a layer twice, with other values": "diffllama",
    "its mask is another one for each head": "doge",
    "it reads the stored keys of the cache itself": "dory",
    "it has a cache of its own": "minimax",
}


def _table() -> dict[str, Architecture]:
    table = {name: Architecture("supported") for name in _SUPPORTED.split()}
    table |= {name: Architecture("limited", note) for note, names in _LIMITED.items() for name in names.split()}
    table |= {name: Architecture("refused", note) for note, names in _REFUSED.items() for name in names.split()}
    return dict(sorted(table.items()))


ARCHITECTURES = _table()


def groups(known: Mapping[str, Architecture] = ARCHITECTURES) -> dict[Architecture, list[str]]:
    """The model_types that share a state and a note."""
    found: dict[Architecture, list[str]] = {}
    for state in ("supported", "limited", "refused"):
        for kind, each in known.items():
            if each.state == state:
                found.setdefault(each, []).append(kind)
    return found


def as_markdown() -> str:
    """The table as docs/models.md has it; `python -m reasonalloc.hf.architectures` prints it."""
    heads = {"supported": "supported", "limited": "supported:", "refused": "refused:"}
    lines = ["| | `model_type` |", "| --- | --- |"]
    lines += [f"| {heads[x.state]} {x.note}".rstrip() + f" | {', '.join(kinds)} |" for x, kinds in groups().items()]
    return "\n".join(lines) + "\n"


def architecture(model: Model) -> Architecture | None:
    """What is known of a model's decoder; None if it is not in the table."""
    config = model.config
    kinds = (config.get_text_config(decoder=True).model_type, config.model_type)
    return next((ARCHITECTURES[kind] for kind in kinds if kind in ARCHITECTURES), None)


def refusal(model: Model) -> str | None:
    """Why a model cannot have a cache with a budget, where that is known; None if nothing is known against it."""
    known = architecture(model)
    return known.note if known is not None and known.state == "refused" else None


if __name__ == "__main__":
    print(as_markdown(), end="")
