"""H2O and LazyEviction against numbers that their published code computed (tests/published/make_statistics.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from layers import add_pages, positions

from reasonalloc import _core

pytestmark = pytest.mark.core
WANTED = json.loads((Path(__file__).parent / "published" / "statistics.json").read_text())
HEADS, DIM, PROMPT, STEPS = 2, 16, 20, 60
ROUTE = (0, 0.5, 0.25, 2.0, 0.25, 0.2)


def inputs(seed):
    random = np.random.default_rng(seed)
    q, k, v = (random.standard_normal((1, HEADS, PROMPT + STEPS, DIM)).astype(np.float32) for _ in range(3))
    return torch.from_numpy(q * 2), torch.from_numpy(k), torch.from_numpy(v)


class Run:
    def __init__(self, scorer, window, stats, seed, score):
        self.pool = _core.Pool("float32", DIM)
        self.layer = _core.Layer(self.pool, 1, HEADS, HEADS, window, scorer, 0, stats)
        self.tokens, self.score = inputs(seed), score

    def step(self, begin, end):
        q, k, v = (x[:, :, begin:end] for x in self.tokens)
        out, prompt = torch.empty(1, end - begin, HEADS, DIM), np.full(1, begin == 0)
        arguments = (q, k, v, out, DIM**-0.5, None, None, None, 0.0, None, None, prompt)
        while missing := self.layer.step(*arguments):
            add_pages(self.pool, missing)

    def columns(self, head):
        fields, raw = self.layer.columns(0, head)
        return np.frombuffer(raw, np.int32).reshape(fields, -1)

    def cut(self, budget):
        results = np.zeros((1, HEADS), np.int64), np.zeros((1, HEADS)), np.zeros(1, np.bool_)
        assert not self.layer.cut(np.full(1, HEADS * budget), np.zeros(1, np.int64), self.score, ROUTE, *results)

    def kept(self):
        return [positions(self.layer, 0, h).tolist() for h in range(HEADS)]


def test_h2o(isa):
    """utils_real_drop, in float32: it sums in the model's dtype. A token goes at every step."""
    run, wanted = Run("h2o", 4, (0, 1.0, 1e-4, False, False), 1, ("h2o", 0.0, 0.0, 1, 0, 0.5, False)), WANTED["h2o"]
    run.step(0, PROMPT)
    for t, kept in enumerate(wanted["kept"], PROMPT):
        run.cut(16)
        assert run.kept() == kept, t
        if t < PROMPT + STEPS:
            run.step(t, t + 1)
    for head, sums in enumerate(wanted["sums"]):
        np.testing.assert_allclose(run.columns(head)[0].view(np.float32), sums, rtol=1e-5)


def test_lazy_eviction(isa):
    """form="code": its step s is position PROMPT - 1 + s."""
    wanted = WANTED["lazy"]
    stats = (2, 1.0, wanted["alpha"], False, True)
    run = Run("lazy", wanted["window"], stats, wanted["seed"], ("lazy", 0.0, 0.0, 1, 0, 0.0, True))
    cuts = {x["step"]: x for x in wanted["cuts"]}
    assert len(cuts) > 3
    run.step(0, PROMPT)
    for step in range(1, STEPS + 1):
        run.step(PROMPT + step - 1, PROMPT + step)
        if step not in cuts:
            continue
        for head in range(HEADS):
            last, gap = run.columns(head)
            assert (last - (PROMPT - 1)).tolist() == cuts[step]["last"][head]
            assert gap.tolist() == cuts[step]["gap"][head]
        run.cut(wanted["capacity"])
        assert run.kept() == cuts[step]["kept"], step
