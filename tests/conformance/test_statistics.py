"""Statistics of prompts, chunks and masks, which the machine of test_calls.py does not make, against float64."""

import numpy as np
import oracle_statistics as gathered
import pytest
import torch
from backends import DTYPES

from reasonalloc import _core

pytestmark = pytest.mark.core
HEADS, PROMPT, TOKENS, WINDOW, SOFTCAP = 2, 37, 100, 8, 5.0
SCORERS = ("h2o", "lazy", "raas")


class Head:
    """One head of one row, and its query heads."""

    def __init__(self, stats, queries, keys, scale, sinks):
        self.stats, self.queries, self.keys, self.scale, self.sinks = stats, queries, keys, scale, sinks

    def slots(self, visible, end):
        """After `end` tokens. visible: [T, T] as the masks had it."""
        slots = []
        for t in range(end):
            slots.append(self.stats.new(t))
            if t < PROMPT and (self.stats.prompt == 2 or (self.stats.prompt == 1 and t < PROMPT - WINDOW)):
                continue
            p = gathered.weights(
                self.queries[:, t], self.keys[: t + 1], self.scale, SOFTCAP, self.sinks, visible[t, : t + 1]
            )
            slots = gathered.added(slots, p, t, self.stats)
        return slots


def pieces(chunked):
    """(begin, end, prompt) of the steps: a prompt at once or in chunks, then tokens, some of them together."""
    steps = [(0, 20, True), (20, 21, True), (21, PROMPT, True)] if chunked else [(0, PROMPT, True)]
    t = PROMPT
    while t < TOKENS:
        end = min(TOKENS, t + (5 if t % 7 == 0 else 1))
        steps.append((t, end, False))
        t = end
    return steps


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("prompt", [0, 1, 2])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("page_format", "group", "dim"),
    [("float32", 1, 8), ("bfloat16", 3, 20), ("float32", 20, 5), ("float16", 6, 1024), ("bfloat16", 4, 64),
     ("float16", 12, 128), ("float32", 2, 64)],
)  # fmt: skip
def test_prompts_chunks_and_masks(backend, page_format, scorer, prompt, chunked, group, dim):
    random = np.random.default_rng(group + 7 * prompt)
    stats = gathered.Stats(prompt, 0.9, 0.03, relative=False)
    pool = backend.pool(page_format, dim)
    layer = _core.Layer(pool, 1, HEADS, HEADS * group, WINDOW, scorer, 0, tuple(stats))
    q, k = (
        torch.from_numpy(random.standard_normal((1, h, TOKENS, dim))).to(DTYPES[page_format]).float().numpy()
        for h in (HEADS * group, HEADS)
    )  # as pages have them
    sinks, scale = random.standard_normal(HEADS * group).astype(np.float32), float(np.float32(1.5 / dim**0.5))
    visible = np.tril(random.random((TOKENS, TOKENS)) < 0.8)
    visible[3] = False  # it sees nothing
    if chunked and prompt == 1:
        visible[:PROMPT] = np.tri(PROMPT, TOKENS, dtype=bool)  # of earlier chunks' queries the masks are gone
    for begin, end, in_prompt in pieces(chunked):
        new = [backend.tensor(x[:, :, begin:end].copy(), DTYPES[page_format]) for x in (q, k, k)]
        shape = (1, end - begin, HEADS * group, dim)
        out = None if begin == 0 else torch.empty(shape, dtype=new[0].dtype, device=backend.device)
        arguments = (
            *new,
            out,
            scale,
            None,
            None,
            None,
            SOFTCAP,
            backend.sinks(sinks),
            visible[begin:end, :end].copy(),
            np.full(1, in_prompt),
        )
        while missing := layer.step(*arguments):
            backend.add_pages(pool, missing)
        if not chunked or end >= PROMPT:
            for h in range(HEADS) if end in (PROMPT, TOKENS) else ():
                own = slice(h * group, (h + 1) * group)
                head = Head(stats, q[0, own], k[0, h], scale, sinks[own])
                gathered.check_columns(layer, 0, h, head.slots(visible, end), scorer, atol=1e-5 * group)


@pytest.mark.parametrize("scorer", ["h2o", "lazy"])
@pytest.mark.parametrize("prompt", [0, 1, 2])
@pytest.mark.parametrize(("page_format", "dim"), [("float32", 16), ("bfloat16", 64), ("float16", 128), ("float16", 24)])
def test_rows_in_a_prompt_beside_others(backend, page_format, dim, prompt, scorer):
    """Each row says for itself whether it is in its prompt, and gathers the same bits as alone."""
    random, stats, dtype = np.random.default_rng(0), gathered.Stats(prompt, 0.9, 0.02), DTYPES[page_format]
    pool = backend.pool(page_format, dim)
    make = lambda rows: _core.Layer(pool, rows, 1, 2, 4, scorer, 0, tuple(stats))  # noqa: E731
    both, alone = make(2), [make(1), make(1)]

    def step(layer, tokens, prompt):
        begin = np.concatenate([[0], np.cumsum([x[0].shape[1] for x in tokens])])
        q, k = (torch.cat([x[i] for x in tokens], 1)[None] for i in range(2))
        out = torch.empty(1, q.shape[2], 2, dim, dtype=dtype, device=backend.device)
        arguments = (q, k, k, out, 0.3, None, begin, np.arange(begin[-1]), 0.0, None, None, np.array(prompt))
        while missing := layer.step(*arguments):
            backend.add_pages(pool, missing)

    for lengths, prompt in (
        ([9, 4], [True, True]),
        ([1, 6], [False, True]),
        ([1, 1], [False, True]),
        ([3, 1], [False] * 2),
        ([1, 90], [False, True]),
        ([1, 30], [False, False]),
    ):
        tokens = [[backend.tensor(random.standard_normal((h, n, dim)), dtype) for h in (2, 1)] for n in lengths]
        step(both, tokens, prompt)
        for row in range(2):
            step(alone[row], tokens[row : row + 1], prompt[row : row + 1])
            assert both.columns(row, 0) == alone[row].columns(0, 0)
    assert np.frombuffer(both.columns(1, 0)[1], np.float32 if scorer == "h2o" else np.int32).sum() > 0


@pytest.mark.parametrize(
    "stats", [(3, 1.0, 0.1, False, False), (0, 1.1, 0.1, False, False), (0, 1.0, 0.0, False, False)]
)
def test_bad_settings(stats):
    with pytest.raises(ValueError, match="stats has"):
        _core.Layer(_core.Pool("float32", 8), 1, 1, 1, 4, "h2o", 0, stats)


def test_the_codes_time_starts_with_the_first_decoded_token(backend):
    """Birth in a prompt that is not taken in: every slot was last active at its end."""
    pool = backend.pool("float32", 8)
    layer = _core.Layer(pool, 1, 1, 1, 4, "lazy", 0, (2, 1.0, 0.9, False, True))
    x = backend.tensor(torch.randn(1, 1, 6, 8))
    while missing := layer.step(x, x, x, None, 1.0, None, None, None, 0.0, None, None, np.ones(1, bool)):
        backend.add_pages(pool, missing)
    assert np.frombuffer(layer.columns(0, 0)[1], np.int32).tolist() == [5] * 6 + [0] * 6
