"""Interruptions, no memory, attention that was taken away: the cache is as it was or says that it is closed."""

import models
import pytest
import torch
from caches import assert_closed, assert_works, cache_of, contents

import reasonalloc as ra
from reasonalloc import _core
from reasonalloc.hf.attention import attention_forward
from reasonalloc.store.pages import PagePool

# ---- Interruptions ---------------------------------------------------------------------------------------------------


def interrupt(module, error):
    """Raises at the end of a module's forward pass, once."""

    def hook(*_):
        handle.remove()
        raise error

    handle = module.register_forward_hook(hook)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine"), MemoryError()])
def test_an_interrupted_forward_pass(error):
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    interrupt(model.model.layers[0], error)
    with pytest.raises(type(error)):
        models.step(model, cache, models.prompt(1))
    with pytest.raises(RuntimeError, match=r"interrupted between layers\); call reset\(\)"):
        models.step(model, cache, models.prompt(1))
    assert_closed(cache, model, "interrupted")


def test_an_interruption_before_the_first_layer_changes_nothing():
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    before = contents(cache)
    interrupt(model.model.embed_tokens, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        models.step(model, cache, models.prompt(1))
    assert contents(cache) == before
    models.step(model, cache, models.prompt(1))


@pytest.mark.parametrize("layer", range(5))
def test_an_interruption_among_sliding_layers(layer):
    """Gemma's layers 2 and 5 have a budget, the others slide; after any of them the cache is out of step."""
    model = models.tiny("gemma3")
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    interrupt(model.model.layers[layer], KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        models.step(model, cache, models.prompt(1))
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        models.step(model, cache, models.prompt(1))
    assert_closed(cache, model, "interrupted")


def test_moving_the_rows_of_an_interrupted_cache():
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    interrupt(model.model.layers[1], KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        models.step(model, cache, models.prompt(1))
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        cache.reorder_cache(torch.tensor([0]))
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        cache.crop(-1)
    cache.reset()
    assert_works(cache, model)


@pytest.mark.parametrize("where", ["_store", "_end_pass"])
def test_an_error_after_the_first_layer_has_stored(monkeypatch, where):
    model = models.tiny()
    cache = cache_of(model, method="reasonalloc")
    monkeypatch.setattr(cache, where, lambda *_, **__: (_ for _ in ()).throw(ArithmeticError("late")))
    with pytest.raises(ArithmeticError):
        models.step(model, cache, models.prompt(12))
    monkeypatch.undo()
    assert_closed(cache, model, "late")


# ---- Out of memory ---------------------------------------------------------------------------------------------------


def no_memory(*_, **__):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def test_no_memory_for_the_prompt(monkeypatch):
    model = models.tiny()
    cache = cache_of(model)
    monkeypatch.setattr("reasonalloc.store.pages.torch.empty", no_memory)
    with pytest.raises(MemoryError, match=r"no memory for .* more bytes of the key-value cache"):
        models.step(model, cache, models.prompt(12))
    monkeypatch.undo()
    assert cache.stats()["closed"] is None  # the first layer had not changed
    assert_works(cache, model)


def grow_exactly(self, pages):
    """No page more than asked for, so that free ones run out at a known place."""
    self.core.add_slab(torch.empty(pages * self.core.page_bytes, dtype=torch.uint8))


def fail_to_grow(self, pages):
    raise MemoryError("no memory for more bytes of the key-value cache")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_no_memory_amid_a_chain(monkeypatch, layer):
    model = models.tiny()
    monkeypatch.setattr(PagePool, "grow", grow_exactly)
    cache = cache_of(model, budget=4000, interval=4000)
    models.step(model, cache, models.prompt(16))
    assert cache.pool.core.info()[2] == 0
    if layer:
        grow_exactly(cache.pool, 2 * layer)  # enough for the heads of the layers before
    before = contents(cache)
    monkeypatch.setattr(PagePool, "grow", fail_to_grow)
    with pytest.raises(MemoryError):
        models.step(model, cache, models.prompt(16))
    monkeypatch.undo()
    if layer:
        assert_closed(cache, model, "MemoryError")
    else:
        assert contents(cache) == before
        assert cache.stats()["closed"] is None
        models.step(model, cache, models.prompt(16))
        assert cache.get_seq_length() == 32


def test_no_memory_for_pages_of_ones_own(monkeypatch):
    """Forked rows share their pages; cutting one of them needs pages of its own."""
    model = models.tiny()
    cache = cache_of(model)
    models.step(model, cache, models.prompt(22))
    cache.batch_repeat_interleave(3)
    pool, cut, one = cache.pool.core, cache.cutter.cut, torch.zeros(1, 1, 16, 8)
    hoard = _core.Layer(pool, 1, 1, 1, 1)

    def cut_without_room(*arguments):
        while not hoard.reserve(16):
            hoard.step(one, one, one, None, 1.0)
        monkeypatch.setattr(PagePool, "grow", fail_to_grow)
        return cut(*arguments)

    monkeypatch.setattr(cache.cutter, "cut", cut_without_room)
    with pytest.raises(MemoryError):
        for i in range(8):
            models.step(model, cache, models.prompt(1, rows=3, seed=i))
    monkeypatch.undo()
    assert_closed(cache, model, "MemoryError")


class Failing:
    """A layer's C object whose one method fails."""

    def __init__(self, core, name):
        self._core, self._name = core, name

    def __getattr__(self, name):
        if name == self._name:
            return lambda *_: (_ for _ in ()).throw(MemoryError("none left"))
        return getattr(self._core, name)


@pytest.mark.parametrize("name", ["reorder", "crop"])
def test_an_error_while_rows_move(name):
    """Some layers have moved, others not: the cache must say so."""
    model = models.tiny()
    cache = cache_of(model, budget=400)
    models.step(model, cache, models.prompt(12, rows=2))
    models.step(model, cache, models.prompt(1, rows=2))
    cache.ragged[1]._core = Failing(cache.ragged[1].core, name)
    with pytest.raises(MemoryError):
        cache.reorder_cache(torch.tensor([1, 0])) if name == "reorder" else cache.crop(-1)
    assert_closed(cache, model, "none left")


# ---- Attention that was taken away -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_cache_whose_model_was_uninstalled(name):
    model = models.tiny(name)
    cache = cache_of(model)
    models.step(model, cache, models.prompt(12))
    before = contents(cache)
    ra.uninstall(model)
    with pytest.raises(RuntimeError, match="no longer uses reasonalloc's attention"):
        models.step(model, cache, models.prompt(1))
    cache_of(model)  # switches the attention on again
    if cache.stats()["closed"]:
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            models.step(model, cache, models.prompt(1))
    else:
        assert contents(cache) == before
        models.step(model, cache, models.prompt(1))
        assert cache.get_seq_length() == 13


def test_attention_that_the_kernels_do_not_compute():
    model = models.tiny()
    cache = cache_of(model)
    attention = model.model.layers[0].self_attn
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    key, value = cache.update(key, key.clone(), 0)
    with pytest.raises(ValueError, match="adds a position bias to its logits"):
        attention_forward(attention, query, key, value, None, 1.0, position_bias=torch.zeros(1, 4, 5, 5))
    assert cache.stats()["closed"] is None


def test_offloading_is_refused():
    cache = cache_of(models.tiny())
    for layer in cache.ragged:
        for call in (layer.offload, layer.prefetch):
            with pytest.raises(NotImplementedError, match="offloaded"):
                call()
