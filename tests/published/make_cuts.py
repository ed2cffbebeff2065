"""What published code computes and keeps at its first cut of a seeded prompt, which test_published_cuts.py reads.

    python tests/published/make_cuts.py rkv R-KV.git > tests/published/rkv.json

The second argument is a git directory of the repository that REPOSITORIES names. Its classes run as they are, on the
CPU in float32; what they rank is seen from outside. None of that code is kept.
"""

import json
import sys
from types import SimpleNamespace

import torch
from code_of import definitions
from dynamickv_layers import IMPORTED, Attention
from seeded import prompt, prompts
from torch.overrides import TorchFunctionMode

REPOSITORIES = {
    "rkv": ("Zefan-Cai/R-KV", "d15c9767"),
    "snapkv": ("FasterDecoding/SnapKV", "e216ddc8"),
    "adakv": ("FFY0/AdaKV", "efe4e2ee"),
    "pyramidkv": ("Zefan-Cai/KVCache-Factory", "c97f9d70"),
    "dynamickv": ("DreamMr/DynamicKV", "8ab3c08d"),
}
CLEAR = 1e-5  # the part of the last score that stays by which it is above the first that goes: more than rounding


class Ranked(TorchFunctionMode):
    """The tensors that are ranked while it is entered."""

    def __init__(self):
        super().__init__()
        self.scores = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.topk, torch.Tensor.topk, torch.sort, torch.Tensor.sort):
            self.scores.append(args[0].clone())
        return function(*args, **(kwargs or {}))


def load(name, repository, path, *wanted, **names):
    return definitions(repository, REPOSITORIES[name][1], path, wanted, **names)


def marked(keys):
    """Values that say where their keys are from: the classes gather them along."""
    return torch.arange(keys.shape[2]).float()[:, None].expand_as(keys).contiguous()


def kept(values):
    """Positions of each head, ascending, from what is left of `marked` [..., n, D]."""
    return values[..., 0].long().sort(-1).values.tolist()


def is_clear(scores, keep, ties=False):
    """Whether no rounding decides which `keep` scores of each row [..., n] are the best, and no tie unless `ties`."""
    best = scores.sort(-1, descending=True).values
    last, first = best[..., keep - 1], best[..., keep]
    return bool(((last - first > CLEAR * last.abs()) | (ties & (last == first))).all())


def numbers(x):
    """Nested lists of as many digits as float32 needs."""
    return [numbers(y) for y in x] if x.dim() else float(f"{x.item():.9g}")


def first_clear(case):
    """case(seed), of the first seed for which it is not None."""
    return next(x for seed in range(1, 5000) if (x := case(seed)) is not None)


def rkv(repository):
    """R1KV at its first cut: from the second on it has the tokens in order of score."""
    own = load("rkv", repository, "rkv/utils.py", "cal_similarity", "compute_attention_scores")
    functions = {f.__name__: f for f in own}
    (cluster,) = load("rkv", repository, "rkv/compression/r1_kv.py", "R1KV", **functions)
    settings = {"budget": 40, "window_size": 8, "kernel_size": 7, "mix_lambda": 0.1}
    shape = {"query_heads": 4, "heads": 2, "tokens": 96, "dim": 16}

    def case(seed):
        q, k = prompt(seed, **shape)
        with Ranked() as ranked:
            _, values = cluster(**settings).update_kv(k, q[:, :, -8:], marked(k))
        (scores,) = ranked.scores
        if is_clear(scores, 40 - 8):
            return {"seed": seed, **shape, **settings, "scores": numbers(scores[0]), "kept": kept(values[0])}
        return None

    return first_clear(case)


def snapkv(repository):
    """SnapKVCluster, for each query head, as it is given keys that were repeated for them."""
    path = "snapkv/monkeypatch/snapkv_utils.py"
    cluster, repeat = load("snapkv", repository, path, "SnapKVCluster", "repeat_kv")
    shape = {"query_heads": 4, "heads": 2, "tokens": 72, "dim": 16}
    size = {"window_size": 8, "max_capacity_prompt": 32}

    def case(seed):
        q, k = prompt(seed, **shape)
        k, made = repeat(k, 2), {}
        for options in ({}, {"pooling": "maxpool", "kernel_size": 7}):  # the code's defaults, and the paper's ablation
            own = cluster(**size, **options)
            with Ranked() as ranked:
                _, values = own.update_kv(k, q, marked(k), None, 1)
            (scores,) = ranked.scores
            if not is_clear(scores, 32 - 8, ties=own.pooling == "maxpool"):
                return None
            made[own.pooling] = {"kernel_size": own.kernel_size, "scores": numbers(scores[0]), "kept": kept(values[0])}
        return {"seed": seed, **shape, **size, **made}

    return first_clear(case)


def adakv(repository):
    """AdaptiveSnapKVCluster for KV heads (gqa_support). The file's import of flash_attn is none of its own: not run.

    Three prompts: by rounding each head's budget the code meets the total, or misses it; and a floor that is no whole
    number, which it rounds down first.
    """
    path = "adaptive_snapkv/monkeypatch/snapkv_utils.py"
    cluster, _ = load("adakv", repository, path, "AdaptiveSnapKVCluster", "repeat_kv")
    shape = {"query_heads": 8, "heads": 4, "tokens": 72, "dim": 16}
    settings = {"window_size": 8, "kernel_size": 7, "pooling": "maxpool", "floor_alpha": 0.2}
    of_model = {"skip": 0, "layer_idx": 0, "gqa_support": True, "num_key_value_groups": 2, "gqa_func": "mean"}

    def case(seed, capacity, meets):
        q, k = prompt(seed, **shape)
        own = cluster(**settings, **of_model, base_capacity=capacity)
        with Ranked() as ranked:
            _, values = own.update_kv(k, q, marked(k))
        (scores,), pooled = ranked.scores[0], ranked.scores[1][0]
        budgets, total = own.head_lens.tolist(), shape["heads"] * capacity
        clear = is_clear(pooled, total - shape["heads"] * 8)
        if not clear or not all(is_clear(x, b - 8, ties=True) for x, b in zip(scores, budgets, strict=True)):
            return None
        if (sum(budgets) == total) != meets:
            return None
        positions = [kept(x) for x in values.split(budgets)]
        return {"seed": seed, "capacity": capacity, "scores": numbers(scores), "budgets": budgets, "kept": positions}

    cases = {
        name: first_clear(lambda seed, x=x: case(seed, *x))
        for name, x in {"met": (28, True), "missed": (28, False), "floored": (32, False)}.items()
    }
    for name in ("missed", "floored"):
        del cases[name]["scores"]
    return {**shape, **settings, **cases}


def pyramidkv(repository):
    """PyramidKVCluster for KV heads, as it is given keys that were not repeated: each layer of a small model; and what
    it keeps of a head for other numbers of layers, capacities and prompts. `steps` has no meaning for one layer.
    """
    functions = ("_gqa_groups", "_reduce_group_scores", "_grouped_window_attn_cache", "_select_topk_kv", "repeat_kv")
    path = "pyramidkv/pyramidkv_utils.py"
    cluster, *_ = load("pyramidkv", repository, path, "PyramidKVCluster", *functions, _debug_print=lambda *_: None)
    shape = {"query_heads": 4, "heads": 2, "tokens": 72, "dim": 16}
    settings = {"window_size": 8, "max_capacity_prompt": 28, "kernel_size": 7, "pooling": "maxpool"}

    def case(seed, layers, layer):
        q, k = prompt(seed, **shape)
        own = cluster(num_hidden_layers=layers, layer_idx=layer, **settings)
        with Ranked() as ranked:
            _, values = own.update_kv(k, q, marked(k), None, 2)
        (scores,) = ranked.scores
        if is_clear(scores, values.shape[2] - 8, ties=True):
            return {"seed": seed, "scores": numbers(scores[0]), "kept": kept(values[0])}
        return None

    def budgets(layers, capacity, window, tokens):
        own = {"num_hidden_layers": layers, "window_size": window, "max_capacity_prompt": capacity}
        q, k = prompt(1, 2, 1, tokens, 2)
        return [cluster(**own, layer_idx=i).update_kv(k, q, k, None, 2)[0].shape[2] for i in range(layers)]

    sizes = [(4, 68, 8, 1000), (4, 68, 8, 121), (4, 68, 8, 120), (4, 68, 8, 119), (4, 68, 8, 68), (4, 68, 8, 67)]
    sizes += [(2, 40, 8, 300), (5, 128, 32, 1000), (5, 128, 32, 200), (30, 256, 8, 4000), (32, 128, 8, 500)]
    return {
        **shape,
        **settings,
        "layers": [first_clear(lambda seed, i=i: case(100 * i + seed, 4, i)) for i in range(4)],
        "budgets": [[*size, budgets(*size)] for size in sizes],
    }


def dynamickv(repository):
    """The attention function of its Llama, layer after layer, which reallocates after the fourth and the eighth."""
    methods = "kv_compression/token_drop/methods/dynamic_v11.py"
    cluster, start = load("dynamickv", repository, methods, "DynamicKVClusterV11", "init_dynamickv_V11")
    path = "kv_compression/token_drop/llama_model_impl/dynamickv_v11.py"
    name = "llama_flash_attn2_forward_DynamicKV_V11"
    (attend,) = load("dynamickv", repository, path, name, **IMPORTED, init_dynamickv_V11=start)
    shape = {"query_heads": 8, "heads": 4, "tokens": 128, "dim": 16}
    settings = {"window_size": 8, "max_capacity_prompt": 40, "kernel_size": 7, "pooling": "avgpool", "radio_max": 10}
    config = SimpleNamespace(num_hidden_layers=8, **settings)
    counted, count = [], cluster.count_elements
    cluster.count_elements = staticmethod(lambda *x: counted.append(count(*x)) or counted[-1])

    def case(seed):
        stored = {}
        with Ranked() as ranked:
            for i, (q, k) in enumerate(prompts(seed, 8, **shape)):
                Attention(config, i, q, k, marked(k), stored).run(attend)
        scores, pooled = [x for x in ranked.scores if x.dim() == 3], ranked.scores[-1]
        budgets = [stored[i].shape[2] for i in range(8)]
        clear = all(is_clear(x[0], b - 8) for x, b in zip(scores, budgets, strict=True))
        if not clear or not is_clear(pooled, 8 * shape["query_heads"] * (40 - 8)):
            return None
        made = {"counts": counted[-1].tolist(), "budgets": budgets, "scores": numbers(scores[3][0, :2])}
        return {"seed": seed, **shape, **settings, "layers": 8, **made, "kept": {i: kept(stored[i][0]) for i in (0, 7)}}

    return first_clear(case)


CASES = {"rkv": rkv, "snapkv": snapkv, "adakv": adakv, "pyramidkv": pyramidkv, "dynamickv": dynamickv}

if __name__ == "__main__":
    torch.set_num_threads(1)
    system, repository = sys.argv[1:]
    print(json.dumps({"code": REPOSITORIES[system], **CASES[system](repository)}))
