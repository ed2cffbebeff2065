"""Tiny random models of every decoder that transformers has, by model_type."""

from __future__ import annotations

import models
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# Settings by the names that one family or another has for them; each config is given those that it knows.
_SETTINGS = {
    **models._COMMON, "init_std": 0.25, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 4096, "n_inner": 48,
    "d_model": 32, "n_layers": 3, "n_heads": 4, "decoder_layers": 3, "decoder_attention_heads": 4, "num_layers": 3,
    "decoder_ffn_dim": 48, "ffn_dim": 48, "num_heads": 4, "word_embed_proj_dim": 32, "num_experts": 4, "dff": 48,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "topk_group": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_topk": 2,
    "moe_num_experts": 4, "first_k_dense_replace": 1, "is_decoder": True, "rotary_dim": 8,
}  # fmt: skip
_MLA = {"num_key_value_heads": 4}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 8, "head_dim": 16}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_SHARING = {
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": models.VOCAB, "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"] * 2 + ["sliding_attention",
    "full_attention"], "num_hidden_layers": 8, "num_kv_shared_layers": 2, "head_dim": 16,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_OWN: dict[str, dict] = {
    **dict.fromkeys(
        ["axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3",
         "sarvam_mla", "youtu", "longcat_flash", "mistral4"], _MLA),
    **dict.fromkeys(
        ["afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "gemma3_text", "kolibri1", "olmo3", "gemma2",
         "vaultgemma", "gpt_oss", "granite_swa", "granitemoe_swa", "flint", "ministral", "smollm3", "dory",
         "lara_mini"],
        _MIXED),
    **dict.fromkeys(["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"], _LINEAR),
    "gemma3n_text": {**_SHARING, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 8, "altup_num_inputs": 2,
                     "intermediate_size": [48] * 8},
    "gemma4_text": {**_SHARING, "global_head_dim": 32},
    "gemma4_unified_text": {**_SHARING, "global_head_dim": 32},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "mamba_d_state": 8,
              "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention", "attention"], "shared_intermediate_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"], "num_dense_layers": 1},
    "nemotron_h": {**_MAMBA},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention", "full_attention"], "head_dim": 8,
                    "attention_chunk_size": 8, "intermediate_size_mlp": 48},
    "kimi_linear": {**_MLA},
    "mistral": {"sliding_window": None}, "moshi": {"sliding_window": 4096}, "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8}, "hunyuan_v1_moe": {"head_dim": 8}, "cwm": {"bos_token_id": 1},
    "modernbert-decoder": {"bos_token_id": 1, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    "opt": {"ffn_dim": 48}, "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1}, "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "zamba2": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
               "num_key_value_heads": 4, "num_mem_blocks": 1, "adapter_rank": 4, "mamba_ngroups": 1,
               "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_d_state": 8, "use_mamba_kernels": False},
    "xmod": {"default_language": "en_XX"},
    "phi3": {"sliding_window": None}, "phimoe": {"sliding_window": None},
    "bigbird_pegasus": {"attention_type": "original_full"},
}  # fmt: skip


def kinds() -> list[str]:
    """Every model_type of a decoder in this transformers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(kind: str, **changes):
    """A model with random weights, the same ones for the same arguments."""
    text = type(CONFIG_MAPPING[kind]().get_text_config(decoder=True))
    default = text()
    known = {
        k: v for k, v in _SETTINGS.items() if k in vars(default) or k in (text.attribute_map or {}) or hasattr(text, k)
    }
    config = text(**known | _OWN.get(kind, {}) | changes)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    return models.seeded(getattr(transformers, name if isinstance(name, str) else name[0]), config)
