"""A model's attention layers as DynamicKV's code sees them, without the model."""

from types import SimpleNamespace
from typing import Optional

import torch
from transformers.cache_utils import Cache, StaticCache
from transformers.models.llama.modeling_llama import repeat_kv

# What the file of the attention function imports and uses. Nothing is rotated: keys and queries are given.
IMPORTED = {
    "Cache": Cache,
    "StaticCache": StaticCache,
    "Optional": Optional,
    "Tuple": tuple,
    "repeat_kv": repeat_kv,
    "apply_rotary_pos_emb": lambda q, k, *_: (q, k),
    "logger": SimpleNamespace(warning_once=lambda _: None),
}


class Given:
    """A projection whose output is known: [1, H, n, D]."""

    def __init__(self, states):
        self.weight = states

    def __call__(self, _):
        return self.weight.transpose(1, 2).flatten(2)


class Attention:
    """What the attention function asks of a layer and of a cache, whose `stored` gets the values of every layer.

    Flash attention, which comes after the eviction, is left out.
    """

    def __init__(self, config, layer, q, k, v, stored):
        self.config, self.layer_idx, self.stored, self.training = config, layer, stored, False
        self.num_heads, self.num_key_value_heads, self.head_dim = q.shape[1], k.shape[1], q.shape[3]
        self.num_key_value_groups, self.hidden_size = q.shape[1] // k.shape[1], q.shape[1] * q.shape[3]
        self.q_proj, self.k_proj, self.v_proj = (Given(x) for x in (q, k, v))
        self.attention_dropout, self.o_proj = 0.0, torch.nn.Identity()

    def _flash_attention_forward(self, q, *_, **__):
        return torch.zeros_like(q)

    def get_usable_length(self, *_):
        return 0

    def update(self, keys, values, layer, *_):
        self.stored[layer] = values

    def run(self, attend):
        tokens = self.q_proj.weight.shape[2]
        attend(self, torch.zeros(1, tokens, 1), past_key_value=self, position_embeddings=(None, None))
