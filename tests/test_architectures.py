"""The table of architectures, held by running a tiny random model of each."""

from pathlib import Path

import models
import pytest
import tiny
import torch
import transformers
from packaging.version import Version

import reasonalloc as ra
from reasonalloc.hf.architectures import ARCHITECTURES, as_markdown
from reasonalloc.hf.check import compare
from reasonalloc.hf.compat import NEWEST_TESTED, cache_argument

transformers_version = Version(transformers.__version__)

# One of each way to differ; the others take some seconds each.
FAST = {
    "llama", "gpt2", "opt", "mixtral", "gptj", "deepseek_v3", "jetmoe", "gemma3_text", "lfm2", "qwen3_next", "whisper",
    "gemma4_text", "phi3", "granite", "bigbird_pegasus", "mamba", "falcon", "diffllama", "doge", "falcon_h1", "gpt_oss",
    "gemma2", "deepseek_v32",
}  # fmt: skip


def cases(*states):
    return [
        pytest.param(kind, marks=[] if kind in FAST else pytest.mark.slow)
        for kind, known in ARCHITECTURES.items()
        if known.state in states
    ]


def build(kind):
    if kind not in tiny.kinds():
        pytest.skip(f"no decoder {kind} in this transformers")
    return tiny.build(kind)


def test_the_documents_have_the_table():
    """docs/models.md: `python -m reasonalloc.hf.architectures` prints what belongs there."""
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    assert page.split("<!-- architectures -->\n")[1] == as_markdown()
    assert len(ARCHITECTURES) >= 43


@pytest.mark.parametrize("kind", cases("supported", "limited"))
def test_supported(kind):
    model = build(kind)
    if transformers_version < Version(NEWEST_TESTED) and not model._can_set_attn_implementation():
        pytest.skip("not through AttentionInterface in this transformers")
    if transformers_version < Version(NEWEST_TESTED):
        model.set_attn_implementation(
            "eager" if kind in ("gemma2", "vaultgemma") else model.config._attn_implementation
        )
    own = model.config._attn_implementation
    try:
        found = compare(model)
    except AttributeError:  # hybrids had caches of their own
        if transformers_version < Version(NEWEST_TESTED):
            pytest.skip("not with DynamicCache in this transformers")
        raise
    assert found.problem is None
    assert found.logits < 1e-4
    if "rows depend on their padding" not in ARCHITECTURES[kind].note:
        assert found.rows < 1e-3 and found.same_tokens
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("kind", cases("refused"))
def test_refused_on_construction(kind):
    """And the model goes on as it was."""
    model = build(kind)
    own = model.config._attn_implementation
    with pytest.raises(ValueError, match=ARCHITECTURES[kind].note):
        ra.ReasonAllocCache(model, ra.Config(method="full"))
    assert model.config._attn_implementation == own
    assert "_reasonalloc_previous_attention" not in vars(model)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("diffllama", "reads the keys of layer 0 a second time"), ("doge", "another one for each head")],
)
def test_what_is_refused_is_refused_without_the_table_too(kind, message, monkeypatch):
    monkeypatch.setattr("reasonalloc.hf.forward.refusal", lambda _: None)
    with pytest.raises(ValueError, match=f"{message}|does not take its attention"):
        compare(build(kind))


def test_a_difference_is_found(monkeypatch):
    """compare cannot say yes to anything: here one layer's attention is off by a little."""
    model = tiny.build("llama")
    attend = ra.ReasonAllocCache.attend
    monkeypatch.setattr(
        ra.ReasonAllocCache, "attend", lambda self, layer, *a, **k: attend(self, layer, *a, **k) * (1 + 0.05 * layer)
    )
    assert "logits differ" in compare(model).problem


def test_a_row_that_its_neighbour_changes_is_found(monkeypatch):
    model = tiny.build("llama")
    attend = ra.ReasonAllocCache.attend

    def leaky(self, *args, **options):
        out = attend(self, *args, **options)
        return out + 0.05 * out.mean(0) if len(out) > 1 else out * 1.05

    monkeypatch.setattr(ra.ReasonAllocCache, "attend", leaky)
    found = compare(model)
    assert found.rows > found.tolerance or not found.same_tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_problem(dtype):
    assert compare(tiny.build("llama").to(dtype)).problem is None


@pytest.mark.slow
def test_the_real_gemma(gemma):
    """18 layers, 3 of them with full attention, heads of 256, one KV head."""
    model, tokenizer = gemma
    found = compare(model)
    assert found.problem is None
    assert found.logits < 1e-4 and found.same_tokens
    ids = tokenizer(models.MATH_TEXT, return_tensors="pt").input_ids
    how = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    expected = model.generate(ids, **how)
    cache = ra.ReasonAllocCache(model, ra.Config(budget=4000))
    assert torch.equal(model.generate(ids, **cache_argument(cache), **how), expected)
    assert cache.stats()["layers"] == [5, 11, 17]
    cache = ra.ReasonAllocCache(model, ra.Config(budget=64, interval=16))
    given = model.generate(ids, **cache_argument(cache), **how)
    assert cache.stats()["evicted"] and cache.stats()["ratio"] < 0.25
    assert given.shape == expected.shape
    assert max(len(p) for p in cache.positions(5)) <= 3 * 64 * 2  # lo..hi of the wave over three layers of one head
