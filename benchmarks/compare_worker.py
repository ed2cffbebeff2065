"""One side of compare.py: times cases on the checkout that PYTHONPATH names, asked line by line over a pipe.

Cases use only what every version of the library has: torch's operators, `ra.score`, `ra.allocate`, and a cache that is
driven as a model's attention modules drive it. So one file serves two checkouts whatever lies between them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import reasonalloc as ra
from reasonalloc import ops

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SHAPES = {"tiny": (4, 2, 16), "SmolLM2": (9, 3, 64), "Llama 8B": (32, 8, 128)}  # query heads, KV heads, head size


class Case(ABC):
    """Something to time. units: what one call consists of, so that the table shows the time of one of them."""

    units = 1

    @abstractmethod
    def run(self, calls: int) -> float:
        """Seconds that `calls` calls take, preparation between them not counted."""

    @abstractmethod
    def result(self) -> torch.Tensor:
        """Numbers that both checkouts should agree on, in the state after construction."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def timed(function: Callable[[], Any], calls: int) -> float:
    """Processor time: there is one thread, and what other processes take of the core does not count."""
    start = time.process_time()
    for _ in range(calls):
        function()
    return time.process_time() - start


class Function(Case):
    """A function without state."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def run(self, calls: int) -> float:
        return timed(self.function, calls)

    def result(self) -> torch.Tensor:
        return torch.as_tensor(self.function())


def attend(dtype: str, head_dim: int, tokens: int) -> Case:
    """Attention of one token over pages: q.k, softmax and p.v of every KV head."""
    heads, group, rng = 8, 4, generator()
    count = -(-tokens // ops.PAGE_TOKENS)
    pages = torch.randn(heads * count, 2 * ops.PAGE_TOKENS * head_dim, generator=rng).to(DTYPES[dtype])
    table = torch.arange(heads * count, dtype=torch.int32).reshape(1, heads, count)
    lengths = torch.full((1, heads), tokens, dtype=torch.int32)
    query = torch.randn(1, heads * group, 1, head_dim, generator=rng).to(DTYPES[dtype])
    return Function(lambda: ops.attend(query, pages, table, lengths, head_dim**-0.5))


def append(dtype: str, tokens: int) -> Case:
    heads, head_dim, rng = 8, 128, generator()
    count = -(-(tokens + 8) // ops.PAGE_TOKENS)
    pages = torch.zeros(heads * count, 2 * ops.PAGE_TOKENS * head_dim, dtype=DTYPES[dtype])
    table = torch.arange(heads * count, dtype=torch.int32).reshape(1, heads, count)
    lengths = torch.full((1, heads), 8, dtype=torch.int32)
    keys, values = (torch.randn(1, heads, tokens, head_dim, generator=rng).to(DTYPES[dtype]) for _ in range(2))

    def call() -> torch.Tensor:
        ops.append_(pages, keys, values, table, lengths)
        return pages

    return Function(call)


def keys_of(heads: int, tokens: int, head_dim: int, *, alike: bool) -> torch.Tensor:
    """[H, N, D]. alike: most keys have one much like them, as in text; else none has."""
    rng = generator(1)
    keys = torch.randn(heads, tokens, head_dim, generator=rng)
    if alike:
        centres = torch.randn(heads, 16, head_dim, generator=rng)
        keys = centres[:, torch.randint(16, (tokens,), generator=rng)] + 0.4 * keys
    return keys


def score(kind: str, tokens: int, *, alike: bool = False) -> Case:
    keys = keys_of(8, tokens, 128, alike=alike)
    queries = torch.randn(32, 8, 128, generator=generator())
    functions: dict[str, Callable[[], Any]] = {
        "rkv": lambda: ops.rkv_score(queries, keys),
        "importance": lambda: ops.importance(queries, keys),
        "redundancy": lambda: ops.redundancy(keys),
        "ra.score.rkv": lambda: ra.score.rkv(queries, keys),
    }
    return Function(functions[kind])


def allocate(kind: str) -> Case:
    rng = generator()
    if kind == "robustify":
        demand = torch.rand(32, generator=rng).double().numpy()
        return Function(lambda: ra.allocate.robustify(demand, 32 * 512))
    scores = [torch.randn(632, generator=rng).numpy() for _ in range(8)]
    return Function(lambda: ra.allocate.route(scores, 8 * 512, window=8))


def model_of(shape: str, layers: int, hidden: int, vocabulary: int = 97) -> Any:
    query_heads, heads, head_dim = SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=query_heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        max_position_embeddings=1 << 16,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


class Layers:
    """A cache that is driven as attention modules drive it: `update`, then the registered attention function."""

    def __init__(self, shape: str, rows: int, dtype: str, count: int, alike: bool, **config: Any) -> None:
        query_heads, heads, head_dim = SHAPES[shape]
        model = model_of(shape, count, 8 * query_heads).to(DTYPES[dtype])
        self.cache = ra.ReasonAllocCache(model, ra.Config(**config))
        self.modules = [layer.self_attn for layer in model.model.layers]
        self.attention = ALL_ATTENTION_FUNCTIONS["reasonalloc"]
        self.rows, self.next = rows, 0
        rng = generator()
        self.queries = torch.randn(rows, query_heads, 2048, head_dim, generator=rng).to(DTYPES[dtype])
        keys = keys_of(heads, 2048, head_dim, alike=alike).to(DTYPES[dtype])
        self.keys = keys[None].expand(rows, -1, -1, -1).contiguous()
        self.values = torch.randn(rows, heads, 2048, head_dim, generator=rng).to(DTYPES[dtype])
        self.out = torch.empty(0)
        self.tokens = self._part(0, 1)

    def _part(self, begin: int, count: int) -> tuple[torch.Tensor, ...]:
        return tuple(x[:, :, begin : begin + count].contiguous() for x in (self.queries, self.keys, self.values))

    def take(self, count: int) -> None:
        """Makes the next `count` tokens ready for `step`: copies are not timed."""
        begin = self.next % 2048
        if begin + count > 2048:
            begin = 0
        self.next = begin + count
        self.tokens = self._part(begin, count)

    def step(self) -> None:
        query, keys, values = self.tokens
        for index, module in enumerate(self.modules):
            key, value = self.cache.update(keys, values, index)
            self.out = self.attention(module, query, key, value, None, scaling=module.scaling)[0]

    def feed(self, count: int) -> float:
        self.take(count)
        return timed(self.step, 1)


class Steps(Case):
    """Decode steps of one token with nothing evicted; they are taken back after each call, so that the length stays."""

    COUNT, LAYERS = 32, 4
    units = COUNT * LAYERS

    def __init__(self, shape: str, rows: int, context: int, dtype: str = "f32") -> None:
        self.layers = Layers(shape, rows, dtype, self.LAYERS, False, method="full")
        self.layers.feed(context)
        self.layers.take(1)

    def run(self, calls: int) -> float:
        seconds = 0.0
        for _ in range(calls):
            seconds += timed(self.layers.step, self.COUNT)
            self.layers.cache.crop(-self.COUNT)
        return seconds

    def result(self) -> torch.Tensor:
        self.run(1)
        return self.layers.out


class Interval(Case):
    """All steps from one cut to the next with that cut: what a chain costs in the long run."""

    LENGTH, LAYERS = 64, 4
    units = LENGTH * LAYERS

    def __init__(self, method: str, shape: str, rows: int, budget: int, dtype: str = "f32") -> None:
        self.layers = Layers(
            shape, rows, dtype, self.LAYERS, True, method=method, budget=budget, interval=self.LENGTH, **WAVE
        )
        self.layers.feed(budget + 2 * self.LENGTH)
        self.run(1)

    def run(self, calls: int) -> float:
        return sum(self.layers.feed(1) for _ in range(calls * self.LENGTH))

    def result(self) -> torch.Tensor:
        return self.layers.out


class Cut(Case):
    """The step that ends with a cut, in steady state: the tokens before it come untimed, the newest 8 one by one."""

    LAYERS, INTERVAL, WINDOW = 4, 128, 8
    units = LAYERS

    def __init__(self, method: str, shape: str, budget: int, dtype: str = "f32", *, alike: bool = True) -> None:
        self.layers = Layers(
            shape, 1, dtype, self.LAYERS, alike, method=method, budget=budget, interval=self.INTERVAL, **WAVE
        )
        self.layers.feed(budget + self.INTERVAL)
        self.run(2)

    def run(self, calls: int) -> float:
        seconds = 0.0
        for _ in range(calls):
            self.layers.feed(self.INTERVAL - self.WINDOW)
            for _ in range(self.WINDOW - 1):
                self.layers.feed(1)
            seconds += self.layers.feed(1)
        return seconds

    def result(self) -> torch.Tensor:
        return torch.cat([torch.tensor(x) for x in self.layers.cache.positions(0, 0)])


class Model(Case):
    """Decode steps of a whole transformers model with random weights, from one cut to the next."""

    LENGTH = 32
    units = LENGTH

    def __init__(self, method: str, shape: str, rows: int, layers: int, hidden: int) -> None:
        self.model = model_of(shape, layers, hidden)
        own = {} if method == "full" else {"budget": 64, "interval": self.LENGTH, **WAVE}
        self.cache = ra.ReasonAllocCache(self.model, ra.Config(method=method, **own))
        parameters = inspect.signature(self.model.forward).parameters
        self.name = "past_key_values" if "past_key_values" in parameters else "cache"
        self.ids = torch.randint(1, 97, (rows, 200), generator=generator())
        self.logits = torch.empty(0)
        self._step()
        self.run(1)

    def _step(self) -> None:
        self.logits = self.model(input_ids=self.ids, use_cache=True, **{self.name: self.cache}).logits[:, -1:]
        self.ids = self.logits.argmax(-1)

    def run(self, calls: int) -> float:
        return timed(self._step, calls * self.LENGTH)

    def result(self) -> torch.Tensor:
        return self.logits


class Generate(Case):
    """`generate` with a fresh cache each time: prefill, cut, 64 tokens."""

    def __init__(self, method: str) -> None:
        self.model = model_of("tiny", 4, 64)
        self.config = ra.Config(method=method, budget=64, interval=32, **WAVE)
        self.ids = torch.randint(1, 97, (1, 200), generator=generator())
        parameters = inspect.signature(self.model.forward).parameters
        self.name = "past_key_values" if "past_key_values" in parameters else "cache"
        self.out = torch.empty(0)

    def _call(self) -> None:
        cache = {self.name: ra.ReasonAllocCache(self.model, self.config)}
        self.out = self.model.generate(self.ids, max_new_tokens=64, do_sample=False, **cache)

    def run(self, calls: int) -> float:
        return timed(self._call, calls)

    def result(self) -> torch.Tensor:
        self._call()
        return self.out


class Prefill(Case):
    """The first step of a cache: 1,024 tokens go in, are attended to and cut."""

    LAYERS = 2
    units = LAYERS

    def __init__(self, method: str, shape: str) -> None:
        self.layers = Layers(shape, 1, "f32", self.LAYERS, True, method=method, budget=256, **WAVE)
        self.layers.take(1024)
        self.run(1)

    def run(self, calls: int) -> float:
        seconds = 0.0
        for _ in range(calls):
            self.layers.cache.reset()
            seconds += timed(self.layers.step, 1)
        return seconds

    def result(self) -> torch.Tensor:
        return self.layers.out


WAVE: dict[str, Any] = {"layers": "uniform"}  # a wave of random keys says nothing


def cases() -> dict[str, Callable[[], Case]]:
    """Every row of the table by name; made only when it is asked for."""
    found: dict[str, Callable[[], Case]] = {}

    def add(name: str, make: Callable[..., Case], *args: Any, **kwargs: Any) -> None:
        found[name] = lambda: make(*args, **kwargs)

    for dtype in DTYPES:
        for head_dim in (64, 128):
            for tokens in (256, 1024, 4096):
                add(f"attend {dtype}, D {head_dim}, {tokens} tokens", attend, dtype, head_dim, tokens)
        add(f"append {dtype}, 1 token", append, dtype, 1)
        add(f"append {dtype}, 512 tokens", append, dtype, 512)
    for kind in ("rkv", "importance", "redundancy", "ra.score.rkv"):
        add(f"score {kind}, 640 keys", score, kind, 640)
    add("score redundancy, 640 keys alike", score, "redundancy", 640, alike=True)
    add("score rkv, 2176 keys", score, "rkv", 2176)
    for kind in ("robustify", "route"):
        add(f"allocate {kind}", allocate, kind)
    for method in ("rkv", "reasonalloc", "snapkv"):
        add(f"cut {method}, Llama 8B, budget 512", Cut, method, "Llama 8B", 512)
    add("cut rkv, Llama 8B, budget 512, no keys alike", Cut, "rkv", "Llama 8B", 512, alike=False)
    add("cut reasonalloc, Llama 8B, budget 512, bf16", Cut, "reasonalloc", "Llama 8B", 512, "bf16")
    add("cut reasonalloc, SmolLM2, budget 256", Cut, "reasonalloc", "SmolLM2", 256)
    for rows in (1, 8):
        of = f"{rows} row{'s' if rows > 1 else ''}"
        add(f"step full, tiny, {of}, 32 tokens", Steps, "tiny", rows, 32)
        add(f"step full, SmolLM2, {of}, 256 tokens", Steps, "SmolLM2", rows, 256)
        add(f"step full, Llama 8B, {of}, 256 tokens", Steps, "Llama 8B", rows, 256)
        add(f"step full, Llama 8B, {of}, 256 tokens, bf16", Steps, "Llama 8B", rows, 256, "bf16")
        for method in ("rkv", "reasonalloc", "streaming"):
            add(f"interval {method}, tiny, {of}, budget 32", Interval, method, "tiny", rows, 32)
        add(f"interval reasonalloc, SmolLM2, {of}, budget 256", Interval, "reasonalloc", "SmolLM2", rows, 256)
        add(f"interval reasonalloc, Llama 8B, {of}, budget 256", Interval, "reasonalloc", "Llama 8B", rows, 256)
        add(f"model reasonalloc, tiny, {of}", Model, "reasonalloc", "tiny", rows, 4, 64)
        add(f"model full, tiny, {of}", Model, "full", "tiny", rows, 4, 64)
        add(f"model reasonalloc, SmolLM2, {of}, 4 layers", Model, "reasonalloc", "SmolLM2", rows, 4, 576)
    add("generate reasonalloc, tiny", Generate, "reasonalloc")
    add("prefill reasonalloc, Llama 8B", Prefill, "reasonalloc", "Llama 8B")
    return found


def answers(requests: Iterator[str]) -> Iterator[dict[str, Any]]:
    """`list PATTERN`, `open NAME` and `run CALLS`, each a line; one answer each."""
    table, case = cases(), None
    for line in requests:
        word, _, rest = line.strip().partition(" ")
        try:
            if word == "list":
                yield {"names": [name for name in table if re.search(rest, name)]}
            elif word == "open":
                case = None  # its memory goes before the next one's comes
                case = table[rest]()
                yield {"units": case.units, "result": case.result().flatten()[:64].double().tolist()}
            elif word == "run" and case is not None:
                yield {"seconds": case.run(int(rest))}
            else:
                yield {"error": f"unknown request {line.strip()!r}"}
        except Exception as error:
            yield {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    checkout = parser.parse_args().checkout.resolve()
    # Whatever prints must not get between the answers.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if not Path(ra.__file__).resolve().is_relative_to(checkout):
        sys.exit(f"reasonalloc was imported from {ra.__file__}, not from {checkout}")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0]}
    print(json.dumps({"versions": versions}), file=out, flush=True)
    with torch.no_grad():
        for answer in answers(iter(sys.stdin)):
            print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
