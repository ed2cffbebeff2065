"""Traces: recorded as the cache did it, small on disk, refused where they do not belong."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass, replace
from functools import lru_cache

import caches
import models
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.numpy import save_file
from traces import SETTINGS, assert_same, feed, recorded, text

import reasonalloc as ra
from reasonalloc.fingerprint import fingerprint
from reasonalloc.hf.compat import cache_argument
from reasonalloc.trace import QUANTILES, Trace
from reasonalloc.trace.compact import DTYPES, narrowest, pack, unpack
from reasonalloc.trace.pieces import pieces

# ---- Recording -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", caches.UNGATED)
def test_recording_changes_nothing(method):
    config = ra.Config(method=method, **SETTINGS, **({} if method == "full" else {"budget": 24}))
    plain, recording = (ra.ReasonAllocCache(models.tiny(), config, record=x) for x in (False, True))
    ids = text()
    assert torch.equal(feed(plain, ids), feed(recording, ids))
    trace = recording.trace(ids)
    figures = plain.stats()
    assert bool(len(trace.cuts)) == (method != "full")
    assert int((trace.gone > 0).sum()) == figures["evicted"] == recording.stats()["evicted"]
    for layer in range(3):
        for h, positions in enumerate(plain.positions(layer)):
            assert np.array_equal(np.flatnonzero(trace.held()[layer, h]), positions)
    if method != "full":
        assert np.array_equal(trace.budgets[-1], np.array(figures["budgets"])[0])
        assert figures["lost_mass"] == pytest.approx(trace.lost[np.diff(_left(trace), axis=0) > 0].mean(), rel=1e-5)


def _left(trace):
    """[C + 1, L, H] slots that each head has let go after each cut, 0 before the first."""
    went = np.stack([(trace.gone == c + 1).sum(-1) for c in range(len(trace.cuts))])
    return np.concatenate([np.zeros_like(went[:1]), went.cumsum(0)])


def test_every_moment_is_in_the_trace():
    """What heads hold after each token, and budgets and slots after each cut."""
    config, ids = ra.Config(method="reasonalloc", budget=24, **SETTINGS), text()
    cache, moments = ra.ReasonAllocCache(models.tiny(), config, record=True), {}
    for begin, end in [(0, 40), *((i, i + 1) for i in range(40, 100))]:
        models.step(models.tiny(), cache, ids[None, begin:end])
        moments[end] = [cache.positions(layer) for layer in range(3)], cache.stats()
    trace = cache.trace(ids)
    assert trace.cuts.tolist() == list(range(40, 101, 8))
    assert trace.prompt == 40 and trace.layers == (0, 1, 2) and trace.heads == 2
    for tokens, (positions, figures) in moments.items():
        held = trace.held(tokens)
        assert [[np.flatnonzero(x).tolist() for x in layer] for layer in held] == [
            [x.tolist() for x in layer] for layer in positions
        ]
        if tokens in trace.cuts:
            cut = trace.cuts.tolist().index(tokens)
            assert np.array_equal(trace.budgets[cut], figures["budgets"][0])
            assert np.array_equal(trace.slots()[cut], figures["slots"][0])
    assert ((trace.lost >= 0) & (trace.lost <= 1)).all()


def test_quantiles_are_of_the_scores(register):
    """A scorer in Python that keeps what it gave."""
    given_scores = []

    @register("kept-scores")
    @dataclass(frozen=True)
    class Kept(ra.Method):
        heads: str = "route"

        def score(self, view):
            scores = view.keys.norm(dim=-1) + view.head
            given_scores.append((view.layer, view.head, scores[: -view.window].numpy()))
            return scores

    trace, _ = recorded("kept-scores", tokens=50)
    assert trace.source["scorer"] == "kept-scores"
    assert len(trace.cuts) == 2 and len(given_scores) == 2 * 3 * 2
    for i, (layer, head, scores) in enumerate(given_scores):
        expected = [np.quantile(scores, q) for q in QUANTILES]
        np.testing.assert_allclose(trace.quantiles[i // 6, layer, head], expected, rtol=1e-6)


def test_a_layer_that_is_not_cut():
    """A wave gives layer 0 so much that at first only the others are cut."""
    profile = ra.WaveProfile((400.0, 20.0, 20.0), (0, 1, 2), fingerprint(models.tiny()))
    trace, cache = recorded(profile=profile, gamma=1.0, tokens=90)
    assert (
        (trace.budgets[0, 0] == -1).all() and np.isnan(trace.quantiles[0, 0]).all() and np.isnan(trace.lost[0, 0]).all()
    )
    assert (trace.budgets[0, 1:] > 0).all() and (trace.budgets[-1] > 0).all()
    assert trace.config() == cache.config and trace.config().profile == profile


@pytest.mark.parametrize("method", ["reasonalloc", "rkv", "random", "streaming"])
def test_a_row_of_a_batch_is_the_row_alone(method):
    config, model = ra.Config(method=method, budget=24, **SETTINGS), models.tiny()
    rows = [text(n, seed=n) for n in (40, 25, 33)]
    ids, mask = models.left_padded(rows)
    batch = ra.ReasonAllocCache(model, config, record=True)
    alone = [ra.ReasonAllocCache(model, config, record=True) for _ in rows]
    models.step(model, batch, ids, mask)
    for cache, row in zip(alone, rows, strict=True):
        models.step(model, cache, row[None])
    new = models.prompt(30, rows=3, seed=7)
    for t in range(30):
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
        models.step(model, batch, new[:, t : t + 1], mask)
        for i, cache in enumerate(alone):
            models.step(model, cache, new[i : i + 1, t : t + 1])
    for i, (row, cache) in enumerate(zip(rows, alone, strict=True)):
        together, apart = (x.trace(torch.cat([row, new[i]]), row=r) for x, r in ((batch, i), (cache, 0)))
        for name in ("ids", "cuts", "gone", "budgets"):
            assert np.array_equal(getattr(together, name), getattr(apart, name)), name
        np.testing.assert_allclose(together.quantiles, apart.quantiles, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(together.lost, apart.lost, atol=1e-4)
        assert together.prompt == apart.prompt == len(row)


def test_rows_that_move_take_their_trace_along():
    config, model = ra.Config(method="rkv", budget=20, **SETTINGS), models.tiny()
    cache, ids = ra.ReasonAllocCache(model, config, record=True), models.prompt(40, rows=2)
    models.step(model, cache, ids)
    cache.reorder_cache(torch.tensor([1, 1]))
    cache.batch_repeat_interleave(2)
    new = models.prompt(20, rows=4, seed=5)
    for t in range(20):
        models.step(model, cache, new[:, t : t + 1])
    for row in range(4):
        trace = cache.trace(torch.cat([ids[1], new[row]]), row=row)
        for layer in range(3):
            for h, positions in enumerate(cache.positions(layer, row)):
                assert np.array_equal(np.flatnonzero(trace.held()[layer, h]), positions)
    cache.batch_select_indices(torch.tensor([3]))
    assert_same_but_time(cache.trace(torch.cat([ids[1], new[3]])), trace)


def assert_same_but_time(one: Trace, two: Trace):
    assert_same(replace(one, provenance={}), replace(two, provenance={}))


def test_crop_and_reset():
    config, model = ra.Config(method="rkv", budget=20, **SETTINGS), models.tiny()
    cache, ids = ra.ReasonAllocCache(model, config, record=True), text(60)
    feed(cache, ids[:45])
    cache.crop(-3)
    for i in range(42, 60):
        models.step(model, cache, ids[None, i : i + 1])
    trace = cache.trace(ids)
    assert len(trace.ids) == 60
    for layer in range(3):
        for h, positions in enumerate(cache.positions(layer)):
            assert np.array_equal(np.flatnonzero(trace.held()[layer, h]), positions)
    cache.reset()
    with pytest.raises(RuntimeError, match="empty"):
        cache.trace(ids)
    feed(cache, ids[:41])
    assert cache.trace(ids[:41]).cuts.tolist() == [40]


def test_chunks_of_a_prompt():
    config, model = ra.Config(method="rkv", budget=20, **SETTINGS), models.tiny()
    cache, ids = ra.ReasonAllocCache(model, config, record=True), text(60)
    for begin in range(0, 48, 12):
        models.step(model, cache, ids[None, begin : begin + 12])
    feed_on = [models.step(model, cache, ids[None, i : i + 1]) for i in range(48, 60)]
    trace = cache.trace(ids)
    assert len(feed_on) == 12 and trace.prompt == 48 and trace.cuts.tolist() == [24, 36, 48, 56]
    again = ra.replay(trace, model, force="evictions")
    assert len(list(again.log_probs())) == 12  # in the chunks of the trace, without being told


def test_generate():
    """ids as generate returns them: the last token was never given to the cache."""
    model = models.tiny()
    cache = ra.ReasonAllocCache(model, ra.Config(method="rkv", budget=20, **SETTINGS), record=True)
    out = model.generate(models.prompt(30), max_new_tokens=20, do_sample=False, **cache_argument(cache))
    for ids in (out, out[0], out[0].tolist(), out[0].numpy(), out[0, :-1]):
        trace = cache.trace(ids, model_id="tiny")
        assert trace.ids.tolist() == out[0, :49].tolist() and trace.prompt == 30
    assert trace.source["model"] == "tiny"


def test_what_cannot_be_traced():
    model, config, ids = models.tiny(), ra.Config(method="rkv", budget=20, **SETTINGS), text(50)
    plain, cache = ra.ReasonAllocCache(model, config), ra.ReasonAllocCache(model, config, record=True)
    with pytest.raises(RuntimeError, match="empty"):
        cache.trace(ids)
    feed(plain, ids)
    with pytest.raises(RuntimeError, match="record=True"):
        plain.trace(ids)
    feed(cache, ids)
    for wrong in (ids[:49], text(52), ids.float(), ids.view(2, 25)):
        with pytest.raises(ValueError, match="50 token ids"):
            cache.trace(wrong)
    with pytest.raises(ValueError, match=r"0\.\.0"):
        cache.trace(ids, row=1)
    with pytest.raises(ValueError, match="between 0 and"):
        cache.trace(ids).held(51)


# ---- Text ------------------------------------------------------------------------------------------------------------


class Bytes:
    """A token for each byte."""

    def decode(self, ids, skip_special_tokens=False):
        return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=60))
def test_pieces_of_shared_characters(text):
    ids = list(text.encode("utf-8"))
    result = pieces(Bytes(), ids)
    assert len(result) == len(ids) and "".join(result) == text


def test_pieces_of_bytes_that_are_no_text():
    assert "".join(pieces(Bytes(), [0xFF, 97, 0xF0, 0x9F])) == "\ufffda\ufffd"


@pytest.mark.slow
def test_pieces_of_a_real_tokenizer(smol):
    _, tokenizer = smol
    text = "Let $\\alpha$ = ½; naïve 数学 🙂🙃  two spaces\n\n<|im_end|> done"
    ids = tokenizer(text).input_ids
    result = pieces(tokenizer, ids)
    assert len(result) == len(ids) and "".join(result) == text


# ---- The file --------------------------------------------------------------------------------------------------------


@given(arrays.arrays(st.sampled_from(DTYPES), arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)))
def test_packing_round_trip(array):
    packed = pack(array)
    assert packed.dtype == np.uint8 and packed.ndim == 1
    back = unpack(packed, array.dtype.name, list(array.shape))
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()  # NaN and the sign of zero included


@given(arrays.arrays(np.int64, st.integers(0, 30), elements=st.integers(-(2**31), 2**32 - 1)))
def test_narrowest_holds_everything(values):
    if values.size and values.min() < 0 and values.max() >= 2**31:
        with pytest.raises(OverflowError):
            narrowest(values)
        return
    small = narrowest(values)
    assert np.array_equal(small, values)
    for name in DTYPES:
        dtype = np.dtype(name)
        if dtype.kind in "iu" and dtype.itemsize < small.dtype.itemsize and values.size:
            assert values.min() < np.iinfo(dtype).min or values.max() > np.iinfo(dtype).max


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("uint8", [3]), ("uint8", [5]), ("uint16", [4]), ("float64", [4]), ("uint8", [-4]), ("uint8", ["4"])],
)
def test_unpacking_something_else(dtype, shape):
    with pytest.raises(ValueError, match="packed"):
        unpack(pack(np.arange(4, dtype=np.uint8)), dtype, shape)


def test_unpacking_damaged_bytes():
    packed = pack(np.arange(100, dtype=np.int32))
    for damaged in (packed[:-4], packed[4:], np.zeros(0, np.uint8)):
        with pytest.raises(ValueError, match="packed"):
            unpack(damaged, "int32", [100])


@pytest.mark.parametrize("method", ["full", "reasonalloc", "streaming"])
def test_saved_and_loaded(method, tmp_path):
    trace, _ = recorded(method)
    named = replace(trace, text="ab" * 50, ends=np.minimum(np.arange(2, 102), 100))
    for each in (trace, named):
        each.save(tmp_path / "a.trace")
        assert_same(Trace.load(tmp_path / "a.trace"), each)
    assert [x.name for x in tmp_path.iterdir()] == ["a.trace"]  # nothing half written stays
    assert trace.pieces[0] == f"<{trace.ids[0]}> " and named.pieces[:2] == ["ab", "a"]


def test_other_files_are_refused(tmp_path):
    trace, _ = recorded(tokens=60)
    path = tmp_path / "a.trace"
    trace.save(path)
    with safe_open(str(path), framework="numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["header"])

    def changed(**changes):
        return {**metadata, "header": json.dumps({**header, **changes})}

    short = {name: x for name, x in header["arrays"].items() if name != "gone"}
    cases = [
        ({"format": "pt"}, tensors, "format is 'pt'"),
        ({}, tensors, "format is None"),
        ({**metadata, "schema": "2"}, tensors, "schema '2', this version reads schema 1"),
        ({**metadata, "header": "{"}, tensors, "damaged"),
        ({**metadata, "header": "[]"}, tensors, "list"),
        (changed(extra=1), tensors, "extra"),
        (changed(prompt="40"), tensors, "prompt"),
        (changed(prompt=61), tensors, "prompt"),
        (changed(layers=[0, 1]), tensors, "shape"),
        (changed(layers=[0, 1, "2"]), tensors, "layers"),
        (changed(arrays=short), tensors, "arrays"),
        (changed(arrays={**header["arrays"], "ids": ["uint8", [61]]}), tensors, "ids|packed"),
        (changed(arrays={**header["arrays"], "ids": 3}), tensors, "not a trace of schema 1"),
        (changed(text="abc"), tensors, "ends"),
        (metadata, {name: x for name, x in tensors.items() if name != "gone"}, "arrays"),
        (metadata, {**tensors, "gone": tensors["gone"][:-5]}, "packed"),
    ]
    for meta, content, complaint in cases:
        save_file(content, tmp_path / "b.trace", meta)
        with pytest.raises(ValueError, match=complaint):
            Trace.load(tmp_path / "b.trace")
    for content in (b"", b"no trace", json.dumps({"schema": 1}).encode(), b"\x80\x04K\x01."):
        (tmp_path / "c.trace").write_bytes(content)
        with pytest.raises(ValueError, match="not a trace"):
            Trace.load(tmp_path / "c.trace")
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "none.trace")
    with pytest.raises(IsADirectoryError):
        Trace.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"cuts": np.array([40, 40, 56])}, "ascend"),
        ({"cuts": np.array([40, 48, 61])}, "ascend"),
        ({"cuts": np.array([40.0, 48.0, 56.0])}, "float64"),
        ({"gone": np.full((3, 2, 60), 9)}, "3 cuts"),
        ({"gone": np.full((3, 2, 60), 1)}, "before it comes"),
        ({"gone": np.eye(60, dtype=int)[40].reshape(1, 1, 60).repeat(3, 0).repeat(2, 1)}, "before it comes"),  # at 40
        ({"text": "a", "ends": np.zeros(60, int)}, "cover"),
        ({"text": "\ud800", "ends": np.ones(60, int)}, r"text of a trace: character 0 is U\+D800"),
        ({"ids": np.full(60, -1)}, "ids .* from 0, got -1"),
        ({"layers": (-1, 0, 1)}, "ascending"),
        ({"layers": (0, 0, 1)}, "ascending"),
        ({"window": 0}, "window"),
        ({"budgets": np.full((3, 3, 2), -2)}, "budgets .* got -2"),
    ],
)
def test_what_cannot_be_is_refused(changes, complaint):
    trace, _ = recorded(tokens=60)
    with pytest.raises(ValueError, match=complaint):
        replace(trace, **changes)


def damaged(tmp_path, tensors=None, **changes):
    """The file of a trace with other fields in its header."""
    trace, _ = recorded(tokens=60)
    trace.save(tmp_path / "a.trace")
    with safe_open(str(tmp_path / "a.trace"), framework="numpy") as file:
        metadata, own = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["header"])
    for name, kind in changes.pop("arrays", {}).items():
        header["arrays"][name] = kind
    save_file(
        {**own, **(tensors or {})}, tmp_path / "b.trace", {**metadata, "header": json.dumps({**header, **changes})}
    )
    return tmp_path / "b.trace"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"arrays": {"gone": ["uint8", [2**62, 2, 60]]}}, "would take"),
        ({"arrays": {"gone": ["uint8", [2**31, 1, 1]]}}, "would take"),
        ({"arrays": {"gone": ["uint8", [30_000_000, 1, 60]]}}, "packed bytes do not hold"),
        ({"arrays": {"gone": ["uint8", [3, 2, 60, -1]]}}, "packed are arrays"),
        ({"prompt": 10**400}, "prompt"),
        ({"layers": [0.5, 1, 2]}, "layers"),
        ({"settings": []}, "settings"),
    ],
)
def test_headers_that_say_what_cannot_be(changes, complaint, tmp_path):
    with pytest.raises(ValueError, match=rf"b\.trace.*{complaint}"):
        Trace.load(damaged(tmp_path, **changes))


def test_a_header_that_is_nested_too_deep(tmp_path):
    trace, _ = recorded(tokens=60)
    trace.save(tmp_path / "a.trace")
    with safe_open(str(tmp_path / "a.trace"), framework="numpy") as file:
        metadata, own = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(own, tmp_path / "b.trace", {**metadata, "header": "[" * 100_000})
    with pytest.raises(ValueError, match="nested too deep"):
        Trace.load(tmp_path / "b.trace")


def test_loading_takes_the_memory_of_the_arrays_and_no_more(tmp_path):
    """A file of 100 KiB that says arrays of 64 MiB: 1.8 GiB for 0.93 MiB was taken once, twenty times the arrays."""
    n, layers = 1 << 16, 512
    trace = Trace(
        ids=np.zeros(n, np.uint8), prompt=0, cuts=np.array([n]), gone=np.zeros((layers, 2, n), np.uint8),
        budgets=np.zeros((1, layers, 2), int), lost=np.zeros((1, layers, 2), np.float32),
        quantiles=np.zeros((1, layers, 2, len(QUANTILES)), np.float32), layers=tuple(range(layers)), window=4,
        interval=8, settings={}, model={}, source={},
    )  # fmt: skip
    trace.gone[0, 0, : n // 2] = 1
    trace.save(tmp_path / "a.trace")
    assert (tmp_path / "a.trace").stat().st_size < 1 << 18
    tracemalloc.start()
    found = Trace.load(tmp_path / "a.trace")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found.gone, trace.gone)
    assert trace.gone.nbytes <= peak < 1.2 * trace.gone.nbytes
    with pytest.raises(ValueError, match=r"67,.* bytes, allowed are 1,000 \(most_bytes\)"):
        Trace.load(tmp_path / "a.trace", most_bytes=1000)


@given(data=st.data())
def test_a_trace_with_any_byte_changed_is_read_or_refused(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    trace, _ = small()
    trace.save(folder / "a.trace")
    raw = bytearray((folder / "a.trace").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a.trace").write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])
    try:
        Trace.load(folder / "a.trace")
    except ValueError as error:
        assert "a.trace" in str(error)


@lru_cache
def small():
    return recorded(tokens=60)
