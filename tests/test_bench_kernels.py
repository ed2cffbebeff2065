"""The benchmarks of kernels: real keys, compression, attention; what is wrong is not timed."""

from __future__ import annotations

import sys

import benches
import models
import pytest
import torch
from benches import SHAPE, Lengths, chain
from transformers.cache_utils import DynamicCache

from reasonalloc.hf.compat import cache_argument
from reasonalloc.lab.bench import (
    attention,
    bandwidth,
    compression,
    recall,
    reference,
    rkv_repo,
    states,
    threads,
    timing,
)

F32, BF16 = torch.float32, torch.bfloat16


CLONE_UTILITIES = """
import torch
def compute_attention_scores(queries, keys): return "scores"
def cal_similarity(keys): return "similarity"
"""


CLONE = """
from . import cal_similarity, compute_attention_scores
from reasonalloc.lab.bench.reference import rkv_compress
class R1KV:
    def __init__(self, budget, window_size, kernel_size, mix_lambda): self.budget = budget
    def update_kv(self, keys, queries, values): return rkv_compress(queries, keys, values, self.budget)
"""


@pytest.fixture(scope="module")
def small_machine():
    with benches.small_machine():
        yield


@pytest.fixture
def clone(tmp_path):
    """Something laid out like a clone of R-KV: its package does not import."""
    package = tmp_path / "R-KV" / "rkv" / "compression"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .rkv import R1KV")
    (package / "r1_kv.py").write_text(CLONE)
    (package.parent / "utils.py").write_text(CLONE_UTILITIES)
    return tmp_path / "R-KV"


# ---- Real keys -------------------------------------------------------------------------------------------------------


def test_states_are_what_the_model_saw():
    model, ids = models.tiny(), models.prompt(40)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, **cache_argument(cache))
    found = states.read(model, ids, [0, 2])
    assert torch.equal(found[1].keys, cache.layers[2].keys[0])
    assert torch.equal(found[1].values, cache.layers[2].values[0])
    attended = reference.sdpa_grouped(found[0].queries[None, :, -1:], found[0].keys[None], found[0].values[None])
    assert attended.isfinite().all()
    assert model.config._attn_implementation == "sdpa"


def test_parts_come_round():
    some = chain(10)
    part = some.part(8, 4)
    assert torch.equal(part.keys, some.keys[:, [8, 9, 0, 1]])
    assert torch.equal(part.queries, some.queries[:, [8, 9, 0, 1]])


def test_two_heads_side_by_side():
    layers = [chain(20, seed) for seed in range(2)]
    wide = states.side_by_side(layers, heads=4, group=3)
    assert wide.keys.shape == wide.values.shape == (4, 20, 32)
    assert wide.queries.shape == (12, 20, 32)
    assert torch.equal(wide.keys[2], torch.cat([layers[1].keys[0], layers[1].keys[1]], -1))


def test_text_is_as_long_as_asked():
    assert states.text_ids(Lengths(), 777).shape == (1, 777)


# ---- Compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_compression_is_checked_in_steady_state(dtype):
    ours = compression.Ours(chain(900), 300, dtype)
    ours.feed(300)
    ours.compress()
    ours.timed_cut()
    assert ours.checked_cut()["score_error"] < 1e-5
    assert sum(map(len, ours.positions())) == ours.total


def test_a_wrong_score_is_not_timed(monkeypatch):
    real = compression.rkv_published_form
    monkeypatch.setattr(compression, "rkv_published_form", lambda q, k: real(q, k) + 1e-3)
    with pytest.raises(RuntimeError, match="not timed"):
        list(compression.rows({"random": chain(600)}, [200], [F32], {}, 1))


def test_other_forms_must_keep_the_same():
    def newest(queries, keys, values, budget):
        return keys[:, :, -budget:], values[:, :, -budget:]

    with pytest.raises(RuntimeError, match="other tokens"):
        list(compression.rows({"random": chain(600)}, [200], [F32], {"newest": newest}, 1))


def test_a_clone_is_timed_as_it_is(clone):
    peers = {"R-KV repository": compression.repository_form(rkv_repo.load(clone))}
    (row,) = compression.rows({"random": chain(600)}, [200], [F32], peers, 1)
    assert row["kept_as_published"] == {"R-KV repository": 1.0}
    assert set(row["ratio"]) == {"published form", "R-KV repository"}
    assert "_reasonalloc_rkv_clone" not in sys.modules


def test_not_a_clone(tmp_path, clone):
    with pytest.raises(ValueError, match="clone of Zefan-Cai/R-KV"):
        rkv_repo.load(tmp_path)
    (clone / "rkv" / "utils.py").write_text("")
    with pytest.raises(ValueError, match="cal_similarity"):
        rkv_repo.load(clone)


def test_a_cut_with_recall_is_checked():
    (row,) = recall.rows({"random": chain(900)}, 300, [200], [BF16], 1)
    assert max(row["checked"].values()) < 1e-5 and set(row["ratio"]) == {"recall, same", "recall, int8"}
    assert 0 < row["cold_bytes"]["recall, int8"] < 0.6 * row["cold_bytes"]["recall, same"]


def test_a_tier_is_full_where_heads_want_different_shares():
    states_ = chain(2500)
    states_.keys[0] *= 3
    (row,) = recall.rows({"random": states_}, 896, [512], [F32], 1)
    assert row["cold"] == 512 and row["ratio"]["recall, same"] > 0


def test_the_published_form_keeps_the_window():
    some = chain(100)
    kept, _ = reference.rkv_compress(some.queries[None, :, -8:], some.keys[None], some.values[None], 40)
    assert kept.shape == (1, 2, 40, 16)
    assert torch.equal(kept[0, :, -8:], some.keys[:, -8:])


# ---- Attention -------------------------------------------------------------------------------------------------------


def test_peers_agree():
    case = attention.Case(SHAPE, F32, batch=2, n=50, copies=2)
    assert case.check() < 1e-5


def test_a_wrong_peer_is_not_timed(monkeypatch):
    monkeypatch.setitem(attention.PEERS, "wrong", lambda q, k, v: reference.sdpa_grouped(q, k, v) + 1)
    with pytest.raises(RuntimeError, match="wrong is off"):
        attention.Case(SHAPE, F32, batch=1, n=50, copies=1).check()


def test_steps_leave_the_length(small_machine):
    case = attention.Case(SHAPE, BF16, batch=1, n=40, copies=3)
    case.time_ours(5)
    assert [layer.tokens(0) for layer in case.layers] == [39, 39, 39]  # the newest token comes and goes


def test_a_sweep_comes_round():
    buffer = bandwidth.Buffer(10_000)
    seen = []
    for _ in range(3):
        assert buffer.sweep(4000, streamed=True) == 4000
        seen.append(buffer.next)
    assert seen == [4000, 8000, 4000]
    assert buffer.sweep(1 << 20) == 10_000


def test_two_threads(small_machine):
    (row,) = threads.measure(sorted(timing.cores()), SHAPE, ["float32"], [1], 64, 1)
    torch.set_num_threads(1)
    assert all(row[who]["ratio"]["one"] > 0 for who in ("ours", "SDPA grouped", "read"))
